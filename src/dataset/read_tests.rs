//! Tests of the profile readers: what counts, and every message.

use super::location::{ProfileFile, ProfileRoot};
use super::read::{MissingValues, OpSamples, ProfileSet, Request};
use super::table::ReadError;
use crate::predictor::test_support::{device, model};
use crate::spec::model::ModelSpec;
use crate::spec::ops::{Op, OpInput};
use crate::spec::parallel::Parallelism;
use proptest::prelude::*;

const MLP: &str = "time_stats.add.median,time_stats.mlp_act.median,n_head,n_kv_head,n_embd,n_expanded_embd,vocab_size,use_gated_mlp,num_tokens,num_tensor_parallel_workers
0.5,1.5,8,2,64,128,128,True,16,1
0.25,1.25,8,2,64,128,128,True,8,1
0.25,1.25,8,2,64,128,128,True,8,1
0.75,1.75,8,2,64,128,128,True,8,2
";

const ATTENTION: &str = "time_stats.attn_kv_cache_save.median,time_stats.attn_prefill.median,time_stats.attn_decode.median,n_embd,n_q_head,n_kv_head,block_size,num_tensor_parallel_workers,batch_size,prefill_chunk_size,kv_cache_size,is_prefill
0.001,0.5,0.0,64,8,2,16,1,1,64,128,True
0.002,0.6,,64,8,2,32,1,1,96.0,0,True
0.003,0.0,0.7,64,8,2,16,1,4,0,256,False
0.004,,0.8,64,8,2,16,1,8,0,256,False
";

const MLP_OPS: [Op; 2] = [Op::MlpAct, Op::Add];

fn with<T>(
    ops: &[Op],
    tp: u32,
    missing_values: MissingValues,
    block_size: Option<u32>,
    run: impl FnOnce(&Request<'_>) -> T,
) -> T {
    run(&Request {
        model: &model(),
        device: &device(),
        network_device: None,
        parallel: Parallelism { tensor_parallel: tp, pipeline_parallel: 1 },
        ops,
        missing_values,
        block_size,
    })
}

fn mlp_with(text: &[u8], tp: u32, missing: MissingValues) -> Result<ProfileSet, ReadError> {
    with(&MLP_OPS, tp, missing, None, |request| {
        let mut set = ProfileSet::default();
        request.read_mlp(&ProfileFile::from_bytes("mlp.csv", text), &mut set)?;
        Ok(set)
    })
}

fn mlp(text: &str) -> Result<ProfileSet, ReadError> {
    mlp_with(text.as_bytes(), 1, MissingValues::Refuse)
}

fn message(text: &str) -> String {
    mlp(text).unwrap_err().to_string()
}

fn attention(ops: &[Op], block_size: Option<u32>) -> Result<ProfileSet, ReadError> {
    with(ops, 1, MissingValues::Refuse, block_size, |request| {
        let mut set = ProfileSet::default();
        request.read_attention(&ProfileFile::from_bytes("attention.csv", ATTENTION), &mut set)?;
        Ok(set)
    })
}

fn points(samples: &OpSamples) -> Vec<(OpInput, f64, u64)> {
    samples.points.iter().map(|p| (p.input, p.ms, p.line)).collect()
}

#[test]
fn rows_of_the_model_and_degree_count_once_with_their_lines() {
    let set = mlp(MLP).unwrap();
    assert_eq!(set.ops.len(), 2);
    assert_eq!(points(&set.ops[1]), [(OpInput::Tokens(16), 0.5, 2), (OpInput::Tokens(8), 0.25, 3)]);
    assert_eq!(set.sources[0].sha256.len(), 64);
    let two = mlp_with(MLP.as_bytes(), 2, MissingValues::Refuse).unwrap();
    assert_eq!(points(&two.ops[0]), [(OpInput::Tokens(8), 1.75, 5)]);
}

#[test]
fn the_order_of_columns_is_irrelevant() {
    let reversed: Vec<String> =
        MLP.lines().map(|l| l.split(',').rev().collect::<Vec<_>>().join(",")).collect();
    assert_eq!(mlp(&reversed.join("\r\n")).unwrap().ops, mlp(MLP).unwrap().ops);
}

#[test]
fn blank_lines_and_carriage_returns_do_not_shift_line_numbers() {
    let text = MLP.replace('\n', "\r\n").replacen("\r\n", "\r\n\r\n", 1);
    let lines: Vec<u64> = mlp(&text).unwrap().ops[0].points.iter().map(|p| p.line).collect();
    assert_eq!(lines, [3, 4]);
    assert!(message(&format!("{text}1,2\r\n")).starts_with("mlp.csv: line 7: 2 cells"));
}

#[test]
fn a_padded_vocabulary_does_not_hide_rows() {
    assert_ne!(model().vocab_size, 128);
    assert!(mlp(MLP).is_ok());
}

#[test]
fn attention_rows_feed_the_operator_that_they_measure() {
    let all = [Op::AttnKvCacheSave, Op::AttnPrefill, Op::AttnDecode];
    let set = attention(&all, None).unwrap();
    let of = |op| points(set.ops.iter().find(|s| s.op == op).unwrap());
    assert_eq!(
        of(Op::AttnPrefill),
        [
            (OpInput::Prefill { kv: 128.0, chunk: 64.0 }, 0.5, 2),
            (OpInput::Prefill { kv: 0.0, chunk: 96.0 }, 0.6, 3),
        ]
    );
    assert_eq!(
        of(Op::AttnDecode),
        [
            (OpInput::Decode { batch: 4, kv: 256.0 }, 0.7, 4),
            (OpInput::Decode { batch: 8, kv: 256.0 }, 0.8, 5),
        ]
    );
    let written: Vec<OpInput> = of(Op::AttnKvCacheSave).iter().map(|p| p.0).collect();
    assert_eq!(written, [64, 96, 4, 8].map(OpInput::Tokens));
}

#[test]
fn rows_of_another_block_size_can_be_left_out() {
    let set = attention(&[Op::AttnPrefill], Some(16)).unwrap();
    assert_eq!(set.ops[0].points.len(), 1);
    assert_eq!(
        attention(&[Op::AttnPrefill], Some(1)).unwrap_err().to_string(),
        "attention.csv: no rows with block_size = 1; it has 16, 32: choose one of these, or \
         measure what is missing"
    );
}

#[test]
fn optional_operators_may_be_absent_and_are_named() {
    let ops = [Op::Add, Op::LmHead, Op::Emb];
    let set = with(&ops, 1, MissingValues::Refuse, None, |request| {
        let mut set = ProfileSet::default();
        request.read_mlp(&ProfileFile::from_bytes("mlp.csv", MLP), &mut set).unwrap();
        set
    });
    assert_eq!(set.not_measured, [Op::LmHead, Op::Emb]);
    assert_eq!(
        set.notes[0],
        "mlp.csv: no column time_stats.lm_head.median; the time of lm_head is left out of every step"
    );
}

#[test]
fn missing_times_stop_or_are_skipped_as_asked() {
    let text = MLP.replace("0.5,1.5", "0.5,NaN").replace("\n0.25,1.25", "\n0.25,");
    assert_eq!(
        message(&text),
        "mlp.csv: line 2: column time_stats.mlp_act.median holds no number, in 2 rows in all; \
         measure them again, or leave these rows out with `missing_values: skip` in the predictor \
         config (`--missing-values skip` for `vidur fit`)"
    );
    let some = MLP.replace("0.5,1.5", "0.5,nan");
    let set = mlp_with(some.as_bytes(), 1, MissingValues::Skip).unwrap();
    assert_eq!((set.ops[0].points.len(), set.ops[1].points.len()), (1, 2));
    assert_eq!(
        set.warnings,
        [
            "mlp.csv: 1 rows without a number in column time_stats.mlp_act.median are left out (lines 2)"
        ]
    );
    assert_eq!(
        mlp_with(text.as_bytes(), 1, MissingValues::Skip).unwrap_err().to_string(),
        "mlp.csv: column time_stats.mlp_act.median holds no number in any row that applies; \
         measure it again"
    );
}

#[test]
fn every_defect_is_named_with_line_column_and_cure() {
    assert_eq!(
        message(&MLP.replace("time_stats.add.median", "add")),
        "mlp.csv: line 1: no column time_stats.add.median, which org/tiny needs; measure the \
         profile again with this program"
    );
    assert_eq!(
        message(&MLP.replace("num_tokens", "tokens")),
        "mlp.csv: line 1: no column num_tokens, which mlp.csv needs; measure the profile again \
         with this program"
    );
    assert_eq!(
        message(&MLP.replace("0.5,1.5", "0.5,fast")),
        "mlp.csv: line 2: column time_stats.mlp_act.median is \"fast\"; expected a time in \
         milliseconds, 0 or more"
    );
    assert_eq!(
        message(&MLP.replace("0.5,1.5", "-0.5,1.5")),
        "mlp.csv: line 2: column time_stats.add.median is \"-0.5\"; expected a time in \
         milliseconds, 0 or more"
    );
    assert_eq!(
        message(&MLP.replace("True,16", "True,16.5")),
        "mlp.csv: line 2: column num_tokens is \"16.5\"; expected a whole number, 0 or more"
    );
    assert_eq!(
        message(&MLP.replace("True,16", "maybe,16")),
        "mlp.csv: line 2: column use_gated_mlp is \"maybe\"; expected True or False"
    );
    assert_eq!(
        message(&format!("{MLP}1,2,3\n")),
        "mlp.csv: line 6: 3 cells where the header has 10; was the file cut off?"
    );
    assert_eq!(
        message(MLP.lines().next().unwrap()),
        "mlp.csv: holds no rows; measure the profile again, or remove the file"
    );
    assert_eq!(message(""), message("a,b"));
}

#[test]
fn an_absent_degree_or_shape_is_named_with_what_there_is() {
    assert_eq!(
        mlp_with(MLP.as_bytes(), 4, MissingValues::Refuse).unwrap_err().to_string(),
        "mlp.csv: no rows with num_tensor_parallel_workers = 4; it has 1, 2: choose one of these, \
         or measure what is missing"
    );
    assert_eq!(
        message(&MLP.replace(",64,128,", ",32,128,")),
        "mlp.csv: no rows of the shape n_head 8, n_kv_head 2, n_embd 64, n_expanded_embd 128, \
         use_gated_mlp True; it has n_head 8, n_kv_head 2, n_embd 32, n_expanded_embd 128, \
         use_gated_mlp True: is this the profile of another model?"
    );
}

#[test]
fn bytes_that_are_no_text_are_named_by_line() {
    let mut bytes = MLP.as_bytes().to_vec();
    let third = MLP.match_indices('\n').nth(1).unwrap().0 + 1;
    bytes[third] = 0xFF;
    assert_eq!(
        mlp_with(&bytes, 1, MissingValues::Refuse).unwrap_err().to_string(),
        "mlp.csv: line 3: not UTF-8; save the file as UTF-8 (without a compressed or binary format)"
    );
}

const REDUCE: &str = ",time_stats.all_reduce.median,rank,num_workers,size,collective,devices_per_node,max_devices_per_node
0,0.1,0,2,2048,all_reduce,1,4
1,0.2,0,2,2048,all_reduce,2,4
2,0.3,0,4,2048,all_reduce,4,4
";

fn collective(op: Op, text: &str, tp: u32, pp: u32) -> Result<ProfileSet, ReadError> {
    let parallel = Parallelism { tensor_parallel: tp, pipeline_parallel: pp };
    with(&[op], tp, MissingValues::Refuse, None, |request| {
        let mut set = ProfileSet::default();
        let request = Request { parallel, ..*request };
        request.read_collective(op, &ProfileFile::from_bytes("network.csv", text), &mut set)?;
        Ok(set)
    })
}

#[test]
fn collectives_are_those_of_the_group_inside_one_node() {
    let set = collective(Op::AllReduce, REDUCE, 2, 1).unwrap();
    assert_eq!(points(&set.ops[0]), [(OpInput::Tokens(2048), 0.2, 3)]);
    assert_eq!(
        collective(Op::AllReduce, REDUCE, 8, 1).unwrap_err().to_string(),
        "network.csv: no rows with num_workers = 8; it has 2, 4: choose one of these, or measure \
         what is missing"
    );
    let send = REDUCE.replace("all_reduce", "send_recv");
    let near = collective(Op::SendRecv, &send, 2, 2).unwrap();
    assert_eq!(near.ops[0].points[0].ms, 0.2);
    let far = collective(Op::SendRecv, &send, 2, 4).unwrap();
    assert_eq!(far.ops[0].points[0].ms, 0.1);
}

#[test]
fn collectives_without_a_network_device_are_refused() {
    let error = with(&[Op::AllReduce], 2, MissingValues::Refuse, None, |request| {
        request.load(&ProfileRoot::BuiltIn).unwrap_err()
    });
    assert_eq!(
        error.to_string(),
        "all_reduce needs a network profile: name the network device (`cluster.network_device` in a \
         config, `--network-device` for `vidur fit`), the folder under network/ that holds it"
    );
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = mlp_with(&bytes, 1, MissingValues::Skip);
    }

    #[test]
    fn no_damage_to_a_profile_makes_a_reader_panic(
        at in 0usize..400, text in "[0-9a-z,.\"\n-]{0,6}", cut in 0usize..400,
    ) {
        for (source, is_mlp) in [(MLP, true), (ATTENTION, false), (REDUCE, false)] {
            let at = at % source.len();
            let end = (at + cut % 9).min(source.len());
            let damaged = format!("{}{text}{}", &source[..at], &source[end..]);
            let file = ProfileFile::from_bytes("f.csv", damaged);
            let all = [Op::Add, Op::AttnPrefill, Op::AttnDecode, Op::AttnKvCacheSave];
            with(&all, 1, MissingValues::Skip, None, |request| {
                let mut set = ProfileSet::default();
                if is_mlp {
                    let _ = request.read_mlp(&file, &mut set);
                } else {
                    let _ = request.read_attention(&file, &mut set);
                    let _ = request.read_collective(Op::AllReduce, &file, &mut set);
                }
            });
        }
    }
}

#[test]
fn the_shape_of_a_model_without_a_gate_is_told_apart() {
    let plain = ModelSpec { gated_mlp: false, ..model() };
    let error = with(&MLP_OPS, 1, MissingValues::Refuse, None, |request| {
        let request = Request { model: &plain, ..*request };
        let file = ProfileFile::from_bytes("mlp.csv", MLP);
        request.read_mlp(&file, &mut ProfileSet::default()).unwrap_err()
    });
    assert!(error.to_string().contains("use_gated_mlp False; it has"), "{error}");
}
