//! vLLM's own log of iterations (`--enable-logging-iteration-details`): a line for each step among
//! whatever else the engine logs,
//!
//! ```text
//! (EngineCore_DP0 pid=7) INFO 09-27 11:17:17 [core.py:358] Iteration(12): 0 context requests, 0 context tokens, 8 generation requests, 8 generation tokens, iteration elapsed time: 12.34 ms
//! ```
//!
//! to which newer versions append the use of the KV cache. Source: vLLM, vllm/v1/engine/core.py.

/// One step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Iteration {
    /// Number of the step since the engine started.
    pub index: u64,
    /// Requests that read their prompts.
    pub context_requests: u32,
    /// Prompt tokens read.
    pub context_tokens: u64,
    /// Requests that decoded.
    pub generation_requests: u32,
    /// Tokens that they processed.
    pub generation_tokens: u64,
    /// Milliseconds from the start of the execution to its result.
    pub elapsed_ms: f64,
}

/// Every iteration in the log, in its order. Lines of another shape are skipped: logs hold many.
pub fn parse(text: &str) -> Vec<Iteration> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Iteration> {
    let plain = crate::profiling::detect::topology::without_escapes(line);
    let (_, rest) = plain.split_once("Iteration(")?;
    let (index, rest) = rest.split_once("):")?;
    let before = |words: &str| -> Option<u64> {
        let (head, _) = rest.split_once(words)?;
        head.split([',', ' ']).rfind(|word| !word.is_empty())?.parse().ok()
    };
    let (_, elapsed) = rest.split_once("iteration elapsed time:")?;
    let elapsed = elapsed.trim_start();
    let digits = elapsed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(elapsed.len());
    let elapsed_ms: f64 = elapsed[..digits].parse().ok()?;
    elapsed[digits..].trim_start().starts_with("ms").then_some(())?;
    Some(Iteration {
        index: index.trim().parse().ok()?,
        context_requests: before(" context requests")?.try_into().ok()?,
        context_tokens: before(" context tokens")?,
        generation_requests: before(" generation requests")?.try_into().ok()?,
        generation_tokens: before(" generation tokens")?,
        elapsed_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: &str = "\
INFO 09-27 11:17:17 [api_server.py:1] Started server process [7]
(EngineCore_DP0 pid=7) INFO 09-27 11:17:17 [core.py:358] Iteration(0): 2 context requests, 64 context tokens, 0 generation requests, 0 generation tokens, iteration elapsed time: 41.84 ms
\u{1b}[1;36m(EngineCore_DP0 pid=7)\u{1b}[0;0m INFO 09-27 11:17:17 [core.py:358] Iteration(1): 0 context requests, 0 context tokens, 2 generation requests, 2 generation tokens, iteration elapsed time: 12.30ms, GPU KV cache usage: 0.5%
Iteration(2): 0 context requests, 0 context tokens, 2 generation requests
";

    #[test]
    fn steps_are_found_among_other_lines_in_both_dialects() {
        let steps = parse(LOG);
        assert_eq!(steps.len(), 2);
        assert_eq!(
            (steps[0].context_requests, steps[0].context_tokens, steps[0].elapsed_ms),
            (2, 64, 41.84)
        );
        assert_eq!(
            (steps[1].index, steps[1].generation_requests, steps[1].elapsed_ms),
            (1, 2, 12.3)
        );
        assert_eq!(super::super::decode_steps(&steps, 2), [12.3]);
        assert!(super::super::decode_steps(&steps, 1).is_empty());
    }

    proptest! {
        #![proptest_config(crate::profiling::network::tests::cases())]

        #[test]
        fn no_log_makes_it_panic(at in 0..700_usize, cut in 0..30_usize, new in "\\PC{0,12}") {
            let mut chars: Vec<char> = LOG.chars().collect();
            let at = at.min(chars.len());
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, new.chars());
            for step in parse(&chars.into_iter().collect::<String>()) {
                prop_assert!(step.elapsed_ms >= 0.0);
            }
        }
    }
}
