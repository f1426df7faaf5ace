use super::*;
use crate::dataset::location::ProfileRoot;
use crate::predictor::test_support::{device, model};
use crate::spec::parallel::Parallelism;
use std::collections::BTreeMap;

const HEADER: &str = "time_stats.graph.median,num_tensor_parallel_workers,phase,batch_size,bucket,num_layers,with_head,with_collectives\n";

/// Whole graphs of the four layers at tensor parallel 1: reading costs 10 ms per 128 tokens, decoding
/// 1 ms and 1 ms per 128 tokens, more for larger batches.
const WHOLE: &str = "10,1,context,1,128,4,True,False
20,1,context,1,256,4,True,False
40,1,context,1,512,4,True,False
2,1,token,1,128,4,True,False
3,1,token,1,256,4,True,False
4,1,token,4,128,4,True,False
6,1,token,4,256,4,True,False
";

fn files(rows: &str) -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([(
        "compute/a30/org/tiny/graph.csv".to_owned(),
        format!("{HEADER}{rows}").into_bytes(),
    )])
}

fn of(
    files: BTreeMap<String, Vec<u8>>,
    settings: &GraphSettings,
    tensor_parallel: u32,
) -> Result<(GraphCost, Provenance), String> {
    settings.check()?;
    let root = ProfileRoot::memory("test", files);
    let system = System {
        root: &root,
        model: &model(),
        device: &device(),
        network_device: Some("wires"),
        parallel: Parallelism { tensor_parallel, pipeline_parallel: 1 },
    };
    build(settings, &system, "graph".into()).map_err(|e| e.to_string())
}

fn cost(rows: &str, settings: &GraphSettings) -> GraphCost {
    of(files(rows), settings, 1).unwrap().0
}

fn prompts(tokens: &[u32]) -> BatchShape {
    let chunk = |&n: &u32| PrefillChunk { kv_tokens: 0, chunk_tokens: n, completes: true };
    BatchShape { prefills: tokens.iter().map(chunk).collect(), ..BatchShape::default() }
}

fn ms(cost: &GraphCost, batch: &BatchShape) -> f64 {
    let step = cost.stage_cost(StageId(0), batch);
    let sum: f64 = cost.stage_breakdown(StageId(0), batch).iter().map(|t| t.ms).sum();
    let (duration, fraction) = SimDuration::split_ms(sum);
    assert_eq!((step.duration, step.fraction), (duration, fraction), "the sum of the breakdown");
    assert!(!step.extrapolated);
    step.duration.as_ms()
}

#[test]
fn a_prompt_runs_in_the_first_bucket_that_is_larger_and_the_largest_takes_its_own_length() {
    let first_fit = cost(WHOLE, &GraphSettings::default());
    let smallest = GraphSettings { selection: BucketSelection::Smallest, ..Default::default() };
    let smallest = cost(WHOLE, &smallest);
    for (tokens, first, small) in [
        (1, 10.0, 10.0),
        (127, 10.0, 10.0),
        (128, 20.0, 10.0),
        (129, 20.0, 20.0),
        (512, 40.0, 40.0),
    ] {
        assert_eq!(ms(&first_fit, &prompts(&[tokens])), first, "{tokens}");
        assert_eq!(ms(&smallest, &prompts(&[tokens])), small, "{tokens}");
    }
}

#[test]
fn prompts_of_a_step_run_one_after_the_other_and_decodes_in_one_graph() {
    let cost = cost(WHOLE, &GraphSettings::default());
    assert_eq!(ms(&cost, &prompts(&[100, 200, 100])), 40.0);
    // Of three sequences the longest decides, and all four places are paid.
    let mut batch = BatchShape::default();
    for context in [10, 100, 127] {
        batch.push_decode(context);
    }
    assert_eq!(ms(&cost, &batch), 4.0);
    batch.decode_on(1);
    assert_eq!(ms(&cost, &batch), 6.0);
    assert_eq!(ms(&cost, &BatchShape::decodes(1, 20)), 2.0);
    let mixed = BatchShape { prefills: prompts(&[300]).prefills, ..BatchShape::decodes(1, 200) };
    assert_eq!(ms(&cost, &mixed), 43.0);
}

#[test]
fn what_no_prompt_token_fills_is_padding() {
    let cost = cost(WHOLE, &GraphSettings::default());
    let times = cost.stage_breakdown(StageId(0), &prompts(&[96]));
    let parts: Vec<(Op, f64)> = times.iter().map(|t| (t.op, t.ms)).collect();
    assert_eq!(parts, [(Op::ContextGraph, 7.5), (Op::GraphPadding, 2.5)]);
}

#[test]
fn without_bucketing_everything_runs_in_the_largest() {
    let settings = GraphSettings { enable_bucketing: false, ..Default::default() };
    let all = cost(WHOLE, &settings);
    assert_eq!(ms(&all, &prompts(&[5])), 40.0);
    assert_eq!(ms(&all, &BatchShape::decodes(1, 5)), 3.0);
    let some = GraphSettings {
        context_encoding_buckets: Some(vec![512, 128]),
        token_generation_batches: Some(vec![4]),
        ..Default::default()
    };
    let some = cost(WHOLE, &some);
    assert_eq!(ms(&some, &prompts(&[200])), 40.0);
    assert_eq!(ms(&some, &BatchShape::decodes(1, 5)), 4.0);
    let both = cost(WHOLE, &GraphSettings { buckets: Some(vec![128]), ..Default::default() });
    assert_eq!(both.graphs.contexts().len() + both.graphs.tokens().len(), 3);
}

#[test]
fn a_graph_of_several_prompts_is_paid_for_whole_by_few() {
    let rows = format!("{WHOLE}15,1,context,2,128,4,True,False\n");
    let settings = GraphSettings { ctx_batch_size: Some(2), ..Default::default() };
    let pairs = cost(&rows, &settings);
    assert_eq!(ms(&pairs, &prompts(&[100, 50, 60])), 30.0);
    let times = pairs.stage_breakdown(StageId(0), &prompts(&[64]));
    assert_eq!(times[1].ms, 15.0 * 0.75);
    let three = GraphSettings { ctx_batch_size: Some(3), ..Default::default() };
    let error = of(files(&rows), &three, 1).err().unwrap();
    assert!(error.contains("ctx_batch_size); it has 1, 2"), "{error}");
}

#[test]
fn one_layer_counts_as_often_as_there_are_layers_and_the_head_once() {
    let rows = "2,1,context,1,128,1,False,False\n1,1,context,1,128,0,True,False\n";
    assert_eq!(ms(&cost(rows, &GraphSettings::default()), &prompts(&[5])), 9.0);
    // The whole model goes before its parts.
    let whole = format!("{rows}8.5,1,context,1,128,4,True,False\n");
    assert_eq!(ms(&cost(&whole, &GraphSettings::default()), &prompts(&[5])), 8.5);
    let headless = "2,1,context,1,128,1,False,False\n";
    let (cost, provenance) = of(files(headless), &GraphSettings::default(), 1).unwrap();
    assert_eq!(ms(&cost, &prompts(&[5])), 8.0);
    assert!(provenance.warnings[0].contains("LM head take no time"), "{:?}", provenance.warnings);
    let error = of(files("2,1,context,1,128,3,True,False\n"), &GraphSettings::default(), 1);
    assert!(error.err().unwrap().contains("no graph of all 4 layers"));
}

#[test]
fn shares_of_a_group_need_collectives_for_every_row_of_the_bucket() {
    let rows = WHOLE.replace(",1,context", ",2,context").replace(",1,token", ",2,token");
    let error = of(files(&rows), &GraphSettings::default(), 2).err().unwrap();
    assert!(error.contains("no all_reduce.csv"), "{error}");
    let mut set = files(&rows);
    // 64 wide in 16 bits: a row is 128 bytes; 128 rows are 16 KiB.
    set.insert(
        "network/wires/all_reduce.csv".into(),
        b"time_stats.all_reduce.median,num_workers,size,devices_per_node\n\
          0.001,2,128,2\n0.004,2,512,2\n0.128,2,16384,2\n0.512,2,65536,2\n"
            .to_vec(),
    );
    let settings = GraphSettings::default();
    let (cost, provenance) = of(set.clone(), &settings, 2).unwrap();
    // Two in each of four layers.
    let times = cost.stage_breakdown(StageId(0), &prompts(&[100]));
    let reduce = times.iter().find(|t| t.op == Op::AllReduce).unwrap().ms;
    assert!((reduce - 8.0 * 0.128).abs() < 1e-6, "{reduce}");
    let decode = cost.stage_breakdown(StageId(0), &BatchShape::decodes(3, 9));
    let reduce = decode.iter().find(|t| t.op == Op::AllReduce).unwrap().ms;
    assert!((reduce - 8.0 * 0.004).abs() < 1e-6, "{reduce}");
    assert_eq!(provenance.sources.len(), 2);
    // Graphs that hold them need none.
    let inside = rows.replace("True,False", "True,True");
    let cost = of(files(&inside), &settings, 2).unwrap().0;
    assert_eq!(ms(&cost, &prompts(&[100])), 10.0);
}

#[test]
fn the_hosts_time_is_added_once_a_step() {
    let mut set = files(WHOLE);
    set.insert(
        "cpu_overhead/wires/org/tiny/cpu_overheads.csv".into(),
        b"schedule_median,sampler_e2e_median,prepare_inputs_e2e_median,\
          process_model_outputs_median,ray_comm_time_mean,model_name,tensor_parallel_degree,\
          batch_size,host_gap_median\n,,,,,org/tiny,1,1,0.5\n,,,,,org/tiny,1,2,0.5\n"
            .to_vec(),
    );
    let settings = GraphSettings { cpu_overhead: true, ..Default::default() };
    let (cost, _) = of(set, &settings, 1).unwrap();
    let step = cost.stage_cost(StageId(0), &prompts(&[100, 100]));
    assert_eq!((step.duration.as_ms(), step.host.as_ms()), (20.5, 0.5));
}

#[test]
fn what_is_not_profiled_is_refused_by_name_and_cure() {
    let with = |settings: GraphSettings, degree| of(files(WHOLE), &settings, degree).err().unwrap();
    let error = with(GraphSettings::default(), 2);
    assert!(
        error.contains(
            "<test>/compute/a30/org/tiny/graph.csv: no graphs at tensor parallel 2; it has 1"
        ),
        "{error}"
    );
    let buckets = Some(vec![128, 384]);
    let error = with(GraphSettings { buckets: buckets.clone(), ..Default::default() }, 1);
    assert!(
        error.contains("bucket 384 (predictor.graph.buckets); it has 128, 256, 512"),
        "{error}"
    );
    let error = with(GraphSettings { token_generation_buckets: buckets, ..Default::default() }, 1);
    assert!(error.contains("--token-buckets 384"), "{error}");
    let batches = Some(vec![16]);
    let error = with(GraphSettings { token_generation_batches: batches, ..Default::default() }, 1);
    assert!(error.contains("no token-generation graph of 16 sequences"), "{error}");
    let error = with(GraphSettings { buckets: Some(vec![]), ..Default::default() }, 1);
    assert!(error.contains("predictor.graph.buckets: []"), "{error}");
    let error = of(BTreeMap::new(), &GraphSettings::default(), 1).err().unwrap();
    assert!(error.contains("no graph.csv") && error.contains("vidur profile graph"), "{error}");
}

#[test]
fn what_no_graph_holds_is_refused_before_the_run() {
    let cost = cost(WHOLE, &GraphSettings::default());
    let fits = Demand {
        longest_prompt: 512,
        longest_decode: 256,
        max_seqs: (4, "scheduler.x.max_num_seqs".into()),
        ..Demand::default()
    };
    assert_eq!(cost.check(&fits), Ok(()));
    for (demand, expected) in [
        (
            Demand { longest_prompt: 513, ..fits.clone() },
            "largest context-encoding bucket of <test>",
        ),
        (Demand { longest_restart: 513, ..fits.clone() }, "kv_cache.size"),
        (
            Demand { longest_decode: 257, ..fits.clone() },
            "up to scheduler.x.max_num_seqs holds 256",
        ),
        (Demand { max_seqs: (5, "seats".into()), ..fits.clone() }, "seats: 5 sequences"),
        (Demand { pieces: Some("it cuts".into()), ..fits.clone() }, "it cuts, and compiled graphs"),
    ] {
        let error = cost.check(&demand).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    // Without decodes neither their buckets nor their batch sizes matter.
    let one_token = Demand { longest_decode: 0, max_seqs: (99, String::new()), ..fits.clone() };
    assert_eq!(cost.check(&one_token), Ok(()));
    // A batch size that never runs may be profiled to any length.
    let rows = "40,1,context,1,512,4,True,False\n\
                6,1,token,4,256,4,True,False\n9,1,token,16,128,4,True,False\n";
    let short = of(files(rows), &GraphSettings::default(), 1).unwrap().0;
    assert_eq!(short.check(&fits), Ok(()));
    let many = Demand { max_seqs: (5, "seats".into()), ..fits.clone() };
    assert!(short.check(&many).unwrap_err().contains("up to seats holds 128"));
    let reading = "10,1,context,1,128,4,True,False\n";
    let reading = of(files(reading), &GraphSettings::default(), 1).unwrap().0;
    let short = Demand { longest_prompt: 9, ..fits };
    assert!(reading.check(&short).unwrap_err().contains("no token-generation graphs"));
}

#[test]
fn a_pipeline_is_refused() {
    let root = ProfileRoot::memory("test", files(WHOLE));
    let parallel = Parallelism { tensor_parallel: 1, pipeline_parallel: 2 };
    let (model, device) = (model(), device());
    let system =
        System { root: &root, model: &model, device: &device, network_device: None, parallel };
    let error = build(&GraphSettings::default(), &system, String::new()).err().unwrap();
    assert!(error.to_string().contains("cluster.pipeline_parallel: 2"), "{error}");
}
