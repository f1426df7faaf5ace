//! ShareGPT with token counts, JSON. An entry has fields for its input and its output, or a
//! list `conversations` whose turns have counts; then, as vLLM does, the first turn is the prompt
//! and the second the output. An entry with fewer turns has no output, and is left out and counted.
//! There are no times. The file as published has text only, and counts depend on the tokenizer.

use super::json::{Fields, Scalar};
use super::layout::{Layout, Shape, TraceFormat};
use serde::Deserialize;

pub(super) const LAYOUT: Layout = Layout {
    format: TraceFormat::ShareGpt,
    name: "sharegpt",
    shape: Shape::Conversations,
    time: None,
    prefill: INPUTS[0],
    decode: OUTPUTS[0],
    marker: None,
    skips_empty: true,
};

/// The field of an entry that holds its turns.
pub(super) const TURNS: &str = "conversations";

const INPUTS: [&str; 4] = ["input_tokens", "prompt_tokens", "input_len", "prompt_len"];
const OUTPUTS: [&str; 4] = ["output_tokens", "completion_tokens", "output_len", "completion_len"];

/// One turn of a conversation.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct Turn {
    #[serde(default)]
    num_tokens: Option<Scalar>,
    #[serde(default)]
    tokens: Option<Scalar>,
}

pub(super) fn is_input(name: &str) -> bool {
    INPUTS.contains(&name)
}

pub(super) fn is_output(name: &str) -> bool {
    OUTPUTS.contains(&name)
}

/// Whether an entry with these fields is one of ShareGPT's.
pub(super) fn is_like(has: impl Fn(&str) -> bool) -> bool {
    has(TURNS) || (INPUTS.iter().any(|n| has(n)) && OUTPUTS.iter().any(|n| has(n)))
}

/// Prompt and output tokens of an entry.
pub(super) fn lengths(fields: &Fields) -> Result<(u32, u32), String> {
    let given = |s: &Scalar| *s != Scalar::Missing;
    if given(&fields.prefill) || given(&fields.decode) {
        return Ok((fields.prefill.count(INPUTS[0])?, fields.decode.count(OUTPUTS[0])?));
    }
    let mut counts = fields.turns.iter().flatten().take(2).enumerate().map(|(at, turn)| {
        let name = format!("{TURNS}[{at}]");
        match (&turn.num_tokens, &turn.tokens) {
            (Some(count), _) => count.count(&format!("{name}.num_tokens")),
            (None, Some(count)) => count.count(&format!("{name}.tokens")),
            (None, None) => Err(format!("{name} has no token count; {}", understood())),
        }
    });
    if fields.turns.is_none() {
        return Err(format!("the entry has no token counts; {}", understood()));
    }
    let prefill = counts.next().transpose()?.unwrap_or(0);
    Ok((prefill, counts.next().transpose()?.unwrap_or(0)))
}

fn understood() -> String {
    format!(
        "expected num_tokens or tokens in each turn, or in the entry one of {} and one of {}: \
         count the text with your model's tokenizer first",
        INPUTS.join(", "),
        OUTPUTS.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{read_lengths_of, read_text};

    #[test]
    fn counts_stand_in_turns_or_entries() {
        let text = r#"[{"id": "a", "conversations": [
            {"from": "human", "value": "hi", "num_tokens": 7}, {"from": "gpt", "tokens": 9},
            {"from": "human", "value": "no count is needed here"}]},
          {"id": "b", "conversations": [{"from": "human", "num_tokens": 3}]},
          {"id": "c", "input_tokens": 5, "output_tokens": 6}]"#;
        let read = read_lengths_of(text).unwrap();
        assert_eq!(read.pairs, [(7, 9), (5, 6)]);
        assert_eq!(read.notes, ["t.csv: 1 request with 0 tokens left out"]);
        let lines = "{\"prompt_tokens\": 5, \"completion_tokens\": 6}\n{\"prompt_len\": 1, \"completion_len\": 2}";
        assert_eq!(read_lengths_of(lines).unwrap().pairs, [(5, 6), (1, 2)]);
    }

    #[test]
    fn text_alone_is_refused_with_the_fields_that_are_understood() {
        let text = r#"[{"id": "a", "conversations": [{"from": "human", "value": "hi"}]}]"#;
        assert_eq!(
            read_lengths_of(text).unwrap_err(),
            "t.csv:1: conversations[0] has no token count; expected num_tokens or tokens in each \
             turn, or in the entry one of input_tokens, prompt_tokens, input_len, prompt_len and \
             one of output_tokens, completion_tokens, output_len, completion_len: count the text \
             with your model's tokenizer first"
        );
    }

    #[test]
    fn a_file_without_times_is_no_trace_to_replay() {
        let text = r#"[{"input_tokens": 5, "output_tokens": 6}]"#;
        assert_eq!(
            read_text(text, |_| {}).unwrap_err(),
            "t.csv:1: the format sharegpt has no arrival times; use the file in \
             workload.synthetic.lengths.trace and say when requests arrive"
        );
    }
}
