//! Keeping an engine at one batch size and watching its steps.

use super::client::{Arrivals, Endpoint, Prompt};
use std::time::Instant;

/// How to drive.
#[derive(Clone, Copy, Debug)]
pub struct Drive {
    /// Requests at the same time.
    pub batch_size: u32,
    /// Words of each prompt.
    pub prompt_words: u32,
    /// Tokens of each answer.
    pub output_tokens: u32,
    /// Number of the first prompt; those of one run differ.
    pub first_number: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Driven {
    /// Milliseconds between tokens while all requests decode.
    pub period_ms: Vec<f64>,
    /// What is odd about the answers.
    pub note: Option<String>,
}

/// Sends `drive.batch_size` requests at once and watches them decode.
///
/// # Errors
/// One line: a request failed, or they never decoded together.
pub fn periods(endpoint: &Endpoint, drive: Drive) -> Result<Driven, String> {
    let streams: Vec<Result<Arrivals, String>> = std::thread::scope(|scope| {
        let start = |i: u32| {
            let prompt = Prompt {
                number: drive.first_number + u64::from(i),
                words: drive.prompt_words,
                max_tokens: drive.output_tokens,
            };
            scope.spawn(move || endpoint.stream(prompt))
        };
        let threads: Vec<_> = (0..drive.batch_size).map(start).collect();
        let end = |thread: std::thread::ScopedJoinHandle<'_, Result<Arrivals, String>>| {
            thread.join().unwrap_or_else(|_| Err("a client broke down".into()))
        };
        threads.into_iter().map(end).collect()
    });
    let streams = streams.into_iter().collect::<Result<Vec<Arrivals>, String>>()?;
    let note = short(&streams, drive.output_tokens);
    match together(&streams) {
        Some(period_ms) => Ok(Driven { period_ms, note }),
        None => Err(note.unwrap_or_else(|| {
            format!(
                "the requests never decoded together; raise --output-tokens, and check that the \
                 engine admits {} sequences",
                drive.batch_size
            )
        })),
    }
}

/// What to say of answers that came in fewer pieces than `tokens`.
fn short(streams: &[Arrivals], tokens: u32) -> Option<String> {
    let least = streams.iter().map(Vec::len).min()?;
    (least < tokens as usize).then(|| {
        format!(
            "an answer came in {least} pieces instead of {tokens}: the engine ended it early (has it \
             ignore_eos and min_tokens?), or sends several tokens at a time, which makes periods too long"
        )
    })
}

/// Times between tokens from the moment that every stream has its first until the first one ends;
/// `None` when that leaves nothing.
fn together(streams: &[Arrivals]) -> Option<Vec<f64>> {
    let from: Instant = streams.iter().filter_map(|s| s.first()).copied().max()?;
    let to: Instant =
        streams.iter().map(|s| s.last().copied()).collect::<Option<Vec<_>>>()?.into_iter().min()?;
    let mut ms = Vec::new();
    for stream in streams {
        for pair in stream.windows(2) {
            if pair[0] >= from && pair[1] <= to {
                ms.push((pair[1] - pair[0]).as_secs_f64() * 1e3);
            }
        }
    }
    // One step alone may be the end of a prompt's.
    (ms.len() >= 3 * streams.len()).then_some(ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_steps_that_all_requests_share_count() {
        let begin = Instant::now();
        let stream = |from: u64, n: u64| -> Arrivals {
            (0..n).map(|i| begin + Duration::from_millis(from + 10 * i)).collect()
        };
        // The second begins 50 ms later: five tokens of the first are not shared.
        let ms = together(&[stream(0, 20), stream(50, 20)]).unwrap();
        assert_eq!(ms.len(), 14 + 14);
        assert!(ms.iter().all(|&ms| (ms - 10.0).abs() < 1e-6));
        assert_eq!(together(&[stream(0, 5), stream(50, 5)]), None);
        assert_eq!(together(&[stream(0, 5), Vec::new()]), None);
        assert_eq!(together(&[]), None);
        assert_eq!(short(&[stream(0, 20), stream(0, 20)], 20), None);
        let note = short(&[stream(0, 20), stream(0, 9)], 20).unwrap();
        assert!(note.contains("9 pieces instead of 20"), "{note}");
    }
}
