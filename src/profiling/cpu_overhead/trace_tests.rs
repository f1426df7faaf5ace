use super::*;
use proptest::prelude::*;

fn event(category: &str, name: &str, start: f64, took: f64) -> String {
    format!(
        r#"{{"ph":"X","cat":"{category}","name":"{name}","pid":7,"tid":7,"ts":{start},"dur":{took},"args":{{"External id":1}}}}"#
    )
}

fn kernel(start: f64, took: f64) -> String {
    format!(
        r#"{{"ph":"X","cat":"kernel","name":"void gemm<bf16>","pid":0,"tid":7,"ts":{start},"dur":{took},"args":{{"device":0,"stream":7,"correlation":9}}}}"#
    )
}

fn trace(events: &[String]) -> String {
    format!(
        r#"{{"schemaVersion":1,"deviceProperties":[{{"id":0,"name":"NVIDIA H100 80GB HBM3"}}],"displayTimeUnit":"ms",
        "traceEvents":[{{"ph":"M","name":"process_name","pid":7,"tid":0,"ts":0.5,"args":{{"name":"python"}}}},
        {{"ph":"i","s":"g","name":"Record Window End","pid":"","tid":"","ts":9.5}},
        {{"ph":"s","id":9,"pid":7,"tid":7,"ts":1,"cat":"ac2g","name":"ac2g"}},{}],"traceName":"t.json"}}"#,
        events.join(",")
    )
}

fn of(text: &str, batch: Option<u32>) -> Result<Steps, String> {
    read(text.as_bytes()).and_then(|kept| steps(kept, batch))
}

/// Three steps of 4 requests, 1,000 microseconds each, from 1,000,000. In each: preparing for 100, of
/// which the device is still busy for 20; kernels from 110 to 710, overlapping; sampling from 500 to 800,
/// outputs from 820 to 900, scheduling from 950.
fn decoding(mark: &str) -> Vec<String> {
    let mut events = Vec::new();
    for step in 0..3 {
        let at = 1_000_000.0 + 1000.0 * f64::from(step);
        events.push(event("user_annotation", mark, at, 400.0));
        events.push(event("user_annotation", "gpu_model_runner: preprocess", at, 100.0));
        events.push(event("cpu_op", "aten::linear", at + 101.0, 5.0));
        events.push(event("user_annotation", "gpu_model_runner: forward", at + 100.0, 200.0));
        events.push(kernel(at - 5.0, 25.0));
        events.push(kernel(at + 110.0, 400.0));
        events.push(kernel(at + 300.0, 410.0));
        events.push(event("user_annotation", "gpu_model_runner: sample", at + 500.0, 100.0));
        events.push(event("user_annotation", "gpu_model_runner: bookkeep", at + 600.0, 200.0));
        events.push(event(
            "python_function",
            "vllm/v1/core/sched/scheduler.py(1055): update_from_output",
            at + 820.0,
            80.0,
        ));
        events.push(event(
            "python_function",
            "vllm/v1/core/sched/scheduler.py(216): schedule",
            at + 950.0,
            50.0,
        ));
    }
    events
}

#[test]
fn host_time_is_what_the_device_is_idle_and_each_moment_has_one_owner() {
    for mark in ["execute_new_0_cached_4", "execute_context_0(0)_generation_4(4)"] {
        let found = of(&trace(&decoding(mark)), None).unwrap();
        let [row] = &found.rows[..] else { panic!("{found:?}") };
        assert_eq!((row.batch_size, row.gap_ms.len()), (4, 2));
        let us = |ms: &[f64]| (ms[0] * 1e3).round() as i64;
        // The kernel that begins before the next step has 5 of its microseconds here.
        assert_eq!(us(&row.device_ms), 20 + 600 + 5);
        assert_eq!(us(&row.prepare_inputs_ms), 80);
        assert_eq!(us(&row.sampler_ms), 90);
        assert_eq!(us(&row.process_outputs_ms), 80);
        assert_eq!(us(&row.schedule_ms), 45);
        assert_eq!(us(&row.gap_ms), 1000 - 625 - 80 - 90 - 80 - 45);
        assert!(found.notes[0].contains("Python stacks"), "{:?}", found.notes);
    }
}

#[test]
fn prompts_other_batches_and_other_threads_do_not_count() {
    let mut events = decoding("execute_new_0_cached_4");
    events.push(event("user_annotation", "execute_new_1_cached_3", 1_003_000.0, 10.0));
    events.push(event("user_annotation", "execute_new_0_cached_2", 1_004_000.0, 10.0));
    events.push(event("user_annotation", "execute_new_0_cached_2", 1_004_500.0, 10.0));
    events.push(
        event("user_annotation", "gpu_model_runner: sample", 1_004_100.0, 100.0)
            .replace("\"tid\":7", "\"tid\":\"8\""),
    );
    let found = of(&trace(&events), None).unwrap();
    let sizes: Vec<(u32, usize)> =
        found.rows.iter().map(|r| (r.batch_size, r.gap_ms.len())).collect();
    assert_eq!(sizes, [(2, 1), (4, 2)]);
    assert_eq!((found.rows[0].sampler_ms[0], found.rows[0].gap_ms[0]), (0.0, 0.5));
}

#[test]
fn torchs_own_steps_need_the_batch_size_and_lists_of_events_will_do() {
    let events = [
        event("user_annotation", "ProfilerStep#3", 100.0, 50.0),
        kernel(110.0, 10.0),
        kernel(140.0, 30.0),
        event("user_annotation", "ProfilerStep#4", 150.0, 50.0),
    ];
    let list = format!("[{}]", events.join(","));
    assert!(of(&list, None).unwrap_err().contains("--batch-sizes N"));
    let found = of(&list, Some(8)).unwrap();
    assert_eq!((found.rows[0].batch_size, &found.rows[0].gap_ms), (8, &vec![0.03, 0.03]));
    assert!(found.rows[0].schedule_ms.is_empty() && found.notes.is_empty());
}

#[test]
fn without_a_device_the_forward_pass_is_the_devices_part() {
    let events: Vec<String> = decoding("execute_new_0_cached_4")
        .into_iter()
        .filter(|event| !event.contains("kernel") && !event.contains("python_function"))
        .collect();
    let found = of(&trace(&events), None).unwrap();
    let row = &found.rows[0];
    assert_eq!((row.device_ms[0], row.sampler_ms[0]), (0.2, 0.3));
    assert!((row.gap_ms[0] - 0.4).abs() < 1e-9 && row.schedule_ms.is_empty(), "{row:?}");
    assert!(found.notes[0].contains("forward pass counts"));
}

#[test]
fn what_cannot_be_used_is_refused_with_event_and_field() {
    let one =
        |from: &str, to: &str| trace(&decoding("execute_new_0_cached_4")).replacen(from, to, 1);
    for (text, words) in [
        (one("\"ts\":1000110", "\"ts\":\"soon\""), "event 8: ts is `soon`, expected microseconds"),
        (
            one("\"dur\":25", "\"dur\":-25"),
            "event 7: dur is -25, expected microseconds of at least 0",
        ),
        (one(",\"dur\":400", ""), "event 3: dur is missing"),
        (one("\"ts\":1000110", "\"ts\":1e300"), "event 8: ts is 1"),
        (trace(&decoding("execute_new_0_cached_4"))[..900].to_owned(), "breaks off after event"),
        ("{}".into(), "no `traceEvents`"),
        ("{\"traceEvents\":{}}".into(), "a list of events"),
        ("{\"traceEvents\":[3]}".into(), "invalid type"),
        (trace(&[kernel(1.0, 1.0)]), "no step is marked"),
        (trace(&[event("user_annotation", "execute_new_0_cached_4", 1.0, 1.0)]), "no two in a row"),
        (trace(&decoding("execute_new_0_cached_4")[..1]), "no two in a row"),
    ] {
        let message = of(&text, None).unwrap_err();
        assert!(message.contains(words) && !message.contains('\n'), "{words}: {message}");
    }
    let marks = ["execute_new_0_cached_4"; 3]
        .iter()
        .zip(0..)
        .map(|(m, i)| event("user_annotation", m, f64::from(i), 0.5));
    assert!(
        of(&trace(&marks.collect::<Vec<_>>()), None).unwrap_err().contains("no event of a device")
    );
}

proptest! {
    #![proptest_config(crate::profiling::network::tests::cases())]

    /// Whatever intervals there are, parts, gap and device add up to the step.
    #[test]
    fn nothing_is_lost_or_counted_twice(
        spans in prop::collection::vec((0..5_usize, 0_u32..4000, 0_u32..3000), 0..40),
        kernels in prop::collection::vec((0_u32..4000, 1_u32..900), 1..30)
    ) {
        let names = ["gpu_model_runner: preprocess", "gpu_model_runner: sample", "gpu_model_runner: bookkeep",
            "llm_engine step: process_outputs", "schedule: allocate_slots"];
        let mut events: Vec<String> = (0..4).map(|i| event("user_annotation", "execute_new_0_cached_4", f64::from(i) * 1000.0, 1.0)).collect();
        events.extend(spans.iter().map(|&(name, start, took)| event("user_annotation", names[name], start.into(), took.into())));
        events.extend(kernels.iter().map(|&(start, took)| kernel(start.into(), took.into())));
        let found = of(&trace(&events), None).unwrap();
        let row = &found.rows[0];
        for step in 0..3 {
            let at = |list: &Vec<f64>| list.get(step).copied().unwrap_or(0.0);
            let sum = at(&row.schedule_ms) + at(&row.sampler_ms) + at(&row.prepare_inputs_ms)
                + at(&row.process_outputs_ms) + at(&row.gap_ms) + at(&row.device_ms);
            prop_assert!((sum - 1.0).abs() < 1e-9, "{sum}: {row:?}");
        }
    }
}
