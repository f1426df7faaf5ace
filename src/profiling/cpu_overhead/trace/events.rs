//! Reading the events of a Chrome trace, as torch's profiler writes it: an object with `traceEvents`,
//! or the bare list. Traces have gigabytes, so events are read one by one and only what matters of
//! them is kept.

use super::{Kept, Moment, Part, Span};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::io::Read;

/// Categories of what runs on a device. Source: kineto, libkineto/src/ActivityType.cpp; torch before
/// 1.12 wrote them with capitals.
const ON_DEVICE: [&str; 5] = ["kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset"];

/// Methods of vLLM's model runners that prepare inputs, and those that sample.
const PREPARE: [&str; 9] = [
    "_update_states",
    "_prepare_inputs",
    "_build_attention_metadata",
    "_preprocess",
    "finish_requests",
    "add_requests",
    "update_requests",
    "prepare_inputs",
    "prepare_attn",
];
const SAMPLE: [&str; 3] = ["_sample", "_bookkeeping_sync", "sample"];
const FORWARD: [&str; 2] = ["_model_forward", "compute_logits"];

/// Reads a whole trace.
///
/// # Errors
/// One line that names the event and the field.
pub fn read(text: impl Read) -> Result<Kept, String> {
    let mut kept = Kept::default();
    let mut json = serde_json::Deserializer::from_reader(text);
    let result = Top(&mut kept).deserialize(&mut json).and_then(|()| json.end());
    match result {
        Ok(()) if kept.found => Ok(kept),
        Ok(()) => Err("no `traceEvents`; expected a trace of torch's profiler".into()),
        Err(e) if e.is_eof() => Err(format!(
            "it breaks off after event {}: {e}; was the profiler stopped?",
            kept.events
        )),
        Err(e) => Err(e.to_string()),
    }
}

/// The document.
struct Top<'a>(&'a mut Kept);

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a trace: an object with traceEvents, or a list of events")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "traceEvents" => map.next_value_seed(Events(self.0))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        Events(self.0).visit_seq(seq)
    }
}

/// The list of events.
struct Events<'a>(&'a mut Kept);

impl<'de> DeserializeSeed<'de> for Events<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Events<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.0.found = true;
        while let Some(event) = seq.next_element::<Event>()? {
            let at = self.0.events;
            self.0.events += 1;
            keep(self.0, event)
                .map_err(|e| serde::de::Error::custom(format!("event {at}: {e}")))?;
        }
        Ok(())
    }
}

/// An event as it stands. Fields of any type pass, since most events are of no interest.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Event {
    ph: Loose,
    cat: Loose,
    name: Loose,
    pid: Loose,
    tid: Loose,
    ts: Loose,
    dur: Loose,
}

/// Any value: text or number is kept.
#[derive(Debug, Default)]
enum Loose {
    #[default]
    Absent,
    Text(String),
    Number(f64),
    Other,
}

impl Loose {
    fn text(&self) -> &str {
        match self {
            Loose::Text(text) => text,
            _ => "",
        }
    }

    /// As microseconds; text that is a number will do.
    fn us(&self, field: &str) -> Result<f64, String> {
        let number = match self {
            Loose::Number(number) => Some(*number),
            Loose::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        let found = match self {
            Loose::Absent => "is missing".to_owned(),
            Loose::Text(text) => format!("is `{}`", text.chars().take(40).collect::<String>()),
            Loose::Number(number) => format!("is {number}"),
            Loose::Other => "is no number".to_owned(),
        };
        // 2^53 microseconds are 285 years: beyond that nothing is exact.
        number
            .filter(|us: &f64| us.is_finite() && us.abs() < 9e15)
            .ok_or_else(|| format!("{field} {found}, expected microseconds"))
    }
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Loose, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Loose;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_str<E>(self, text: &str) -> Result<Loose, E> {
                Ok(Loose::Text(text.to_owned()))
            }
            fn visit_string<E>(self, text: String) -> Result<Loose, E> {
                Ok(Loose::Text(text))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Loose, E> {
                Ok(Loose::Number(number))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Loose, E> {
                Ok(Loose::Number(number as f64))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Loose, E> {
                Ok(Loose::Number(number as f64))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Loose, E> {
                Ok(Loose::Other)
            }
            fn visit_unit<E>(self) -> Result<Loose, E> {
                Ok(Loose::Absent)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Loose::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Loose, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Loose::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Files an event under what it means.
fn keep(kept: &mut Kept, event: Event) -> Result<(), String> {
    if event.ph.text() != "X" {
        return Ok(());
    }
    let (mut category, name) = (event.cat.text(), event.name.text());
    // A torch that was built without kineto has no categories.
    if category.is_empty() && event.pid.text() == "CPU functions" {
        category = "user_annotation";
    }
    let times = || -> Result<(f64, f64), String> {
        let (start, took) = (event.ts.us("ts")?, event.dur.us("dur")?);
        match took < 0.0 {
            true => Err(format!("dur is {took}, expected microseconds of at least 0")),
            false => Ok((start, start + took)),
        }
    };
    if ON_DEVICE.iter().any(|known| category.eq_ignore_ascii_case(known)) {
        kept.device.push(times()?);
        return Ok(());
    }
    let part = match category {
        "user_annotation" => {
            if let Some(moment) = Moment::of(name) {
                let (start, end) = times()?;
                let thread = kept.thread(event.pid.key(), event.tid.key());
                kept.marks.push((moment, Span { start, end, thread }));
                return Ok(());
            }
            part_of_scope(name)
        }
        "python_function" => {
            kept.with_stack = true;
            part_of_function(name)
        }
        _ => None,
    };
    if let Some(part) = part {
        let (start, end) = times()?;
        let thread = kept.thread(event.pid.key(), event.tid.key());
        kept.parts.push((part, Span { start, end, thread }));
    }
    Ok(())
}

impl Loose {
    fn key(&self) -> String {
        match self {
            Loose::Text(text) => text.clone(),
            Loose::Number(number) => number.to_string(),
            _ => String::new(),
        }
    }
}

/// vLLM's own scopes (`VLLM_CUSTOM_SCOPES_FOR_PROFILING=1`). Source: vllm/v1/engine/llm_engine.py,
/// core/sched/scheduler.py, worker/gpu_model_runner.py.
fn part_of_scope(name: &str) -> Option<Part> {
    match name {
        "gpu_model_runner: preprocess" => Some(Part::PrepareInputs),
        "gpu_model_runner: forward" | "gpu_model_runner: postprocess" => Some(Part::Forward),
        "gpu_model_runner: sample" | "gpu_model_runner: bookkeep" => Some(Part::Sampler),
        "llm_engine step: process_outputs" => Some(Part::ProcessOutputs),
        _ if name.starts_with("schedule: ") => Some(Part::Schedule),
        _ => None,
    }
}

/// Functions by file and name, as the profiler writes them with stacks: `path/file.py(12): name`.
fn part_of_function(name: &str) -> Option<Part> {
    let (place, function) = name.rsplit_once(": ")?;
    let (file, _) = place.rsplit_once('(')?;
    match function {
        "schedule" if file.ends_with("scheduler.py") => Some(Part::Schedule),
        "update_from_output" if file.ends_with("scheduler.py") => Some(Part::ProcessOutputs),
        "process_outputs" if file.ends_with("output_processor.py") => Some(Part::ProcessOutputs),
        _ if file.ends_with("model_runner.py") && PREPARE.contains(&function) => {
            Some(Part::PrepareInputs)
        }
        _ if file.ends_with("model_runner.py") && SAMPLE.contains(&function) => Some(Part::Sampler),
        "compute_logits" => Some(Part::Forward),
        _ if file.ends_with("model_runner.py") && FORWARD.contains(&function) => {
            Some(Part::Forward)
        }
        _ => None,
    }
}
