//! Reading YAML strictly, with errors that say where and what in one line:
//! `file:line:column: path.to.field: what is wrong (found: the line)`.

use serde::de::DeserializeOwned;
use serde_saphyr::{Error, UserMessageFormatter};
use std::fmt::Write as _;

/// What is wrong with a YAML text, and where. Prints as one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.line_of_text())]
pub struct YamlError {
    /// File that the text came from, as the caller named it.
    pub file: String,
    /// Line and column, both from 1, where the parser knows them.
    pub position: Option<(u64, u64)>,
    /// Fields from the root to the value, such as `cluster.scheduler`; empty at the root.
    pub path: String,
    /// What is wrong, and what was expected.
    pub message: String,
    /// The line at fault, trimmed; empty where it would not help.
    pub found: String,
}

impl YamlError {
    fn line_of_text(&self) -> String {
        let mut text = self.file.clone();
        if let Some((line, column)) = self.position {
            // Writing to a string does not fail.
            let _ = write!(text, ":{line}:{column}");
        }
        if !self.path.is_empty() {
            let _ = write!(text, ": {}", self.path);
        }
        let _ = write!(text, ": {}", self.message);
        if !self.found.is_empty() {
            let _ = write!(text, " (found: {})", self.found);
        }
        // What a file holds must not steer the terminal.
        if !text.contains(char::is_control) {
            return text;
        }
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
    }
}

/// Reads one YAML document of type `T`; `file` is the name to use in messages. Unknown keys are
/// errors where `T` denies them; duplicate keys always are.
///
/// # Errors
/// The first thing that is wrong, with its position and the field that it belongs to.
pub fn from_str<T: DeserializeOwned>(text: &str, file: &str) -> Result<T, YamlError> {
    let mut path = String::new();
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    })
    .map_err(|error| describe(&error, text, file, &path))
}

/// The candidate most like `name`, if any is like it at all. Case does not count, and a candidate
/// such as `org/model` may also be matched by what follows its last slash.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let likeness = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let tail = candidate.rsplit('/').next().unwrap_or(&candidate);
        alike(&name, &candidate).max(alike(&name, tail))
    };
    candidates
        .into_iter()
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(score, _)| *score >= 0.6)
        // Of equals the first wins.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, candidate)| candidate)
}

/// 0 to 1: how alike two names are. A beginning of at least three letters counts as alike.
fn alike(a: &str, b: &str) -> f64 {
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    let begins = short.len() >= 3 && long.starts_with(short);
    let score = strsim::normalized_damerau_levenshtein(a, b);
    if begins { 0.6 + 0.4 * score } else { score }
}

fn describe(error: &Error, text: &str, file: &str, path: &str) -> YamlError {
    let error = match error.without_snippet() {
        Error::AliasError { error, .. } => error.without_snippet(),
        other => other,
    };
    let position = error.location().map(|at| (at.line(), at.column()));
    let line = position
        .and_then(|(line, _)| usize::try_from(line).ok()?.checked_sub(1))
        .and_then(|index| text.lines().nth(index))
        .unwrap_or_default();
    // A missing field has no line of its own: the parser points at its mapping.
    let missing = matches!(error, Error::SerdeMissingField { .. } | Error::Eof { .. });
    YamlError {
        file: file.to_owned(),
        position,
        path: parent_of(path, error),
        message: message(error),
        found: if missing { String::new() } else { shorten(line.trim()) },
    }
}

/// The path, without the field at its end that the message names anyway.
fn parent_of(path: &str, error: &Error) -> String {
    let path = path.trim_end_matches(".?");
    let parent = match error {
        Error::SerdeUnknownField { field, .. } => match path.strip_suffix(field.as_str()) {
            Some(rest) => rest.strip_suffix('.').unwrap_or(rest),
            None => path,
        },
        _ => path,
    };
    if parent == "." || parent == "?" { String::new() } else { parent.to_owned() }
}

/// What is wrong, in the words of someone who writes the file.
fn message(error: &Error) -> String {
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            format!("unknown field `{field}`; {}", cure(field, expected))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("unknown value `{variant}`; {}", cure(variant, expected))
        }
        Error::SerdeMissingField { field, .. } => format!("missing field `{field}`"),
        Error::InvalidScalar { ty, .. } => format!("expected {}", kind_of(ty)),
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => {
            format!("expected {}, not {unexpected}", kind_of(expected))
        }
        Error::Unexpected { expected: "mapping start", .. } => {
            "expected a mapping: one `key: value` a line, or {}".into()
        }
        Error::Unexpected { expected: "sequence start", .. } => {
            "expected a list: one `- value` a line, or []".into()
        }
        Error::ExpectedStringKeyForExternallyTaggedEnum { .. }
        | Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. }
        | Error::ExpectedMappingEndAfterEnumVariantValue { .. } => {
            "expected one choice with its settings: `name: {}`".into()
        }
        Error::Eof { .. } => "the text ends here; expected more".into(),
        Error::Message { msg, .. } => one_line(msg),
        other => {
            let text = one_line(&other.render_with_formatter(&UserMessageFormatter));
            // The position is already in front.
            text.split(" at line ").next().unwrap_or(&text).to_owned()
        }
    }
}

/// "did you mean", or the choices when nothing is like it.
fn cure(name: &str, expected: &[&'static str]) -> String {
    match closest(name, expected.iter().copied()) {
        Some(like) => format!("did you mean `{like}`?"),
        None if expected.is_empty() => "nothing is expected here".into(),
        None => format!("expected one of {}", expected.join(", ")),
    }
}

/// A Rust type, or serde's word for it, as a reader of YAML would say it.
fn kind_of(ty: &str) -> String {
    let ty = ty.strip_prefix("integer ").unwrap_or(ty);
    match ty {
        "u8" => "a whole number from 0 to 255".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" => "a whole number from 0 to 4294967295".into(),
        "u64" | "usize" => "a whole number, 0 or above".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" | "float" | "floating point" => "a number".into(),
        "bool" | "boolean" | "a boolean" => "true or false".into(),
        other => other.to_owned(),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn shorten(line: &str) -> String {
    const LONGEST: usize = 80;
    if line.chars().count() <= LONGEST {
        return line.to_owned();
    }
    line.chars().take(LONGEST).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Config {
        cluster: Cluster,
        #[serde(default)]
        seeds: Vec<u64>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Cluster {
        replicas: u32,
        #[serde(default)]
        scheduler: Option<Scheduler>,
        #[serde(default)]
        exact: bool,
        #[serde(default)]
        rate: f64,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    #[allow(dead_code)]
    enum Scheduler {
        Sarathi { chunk_size: u32 },
        Vllm,
    }

    fn error(text: &str) -> String {
        from_str::<Config>(text, "run.yml").unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_field_is_named_with_its_place_and_what_was_meant() {
        assert_eq!(
            error("cluster:\n  replicas: 2\n  schedular: vllm\n"),
            "run.yml:3:3: cluster: unknown field `schedular`; did you mean `scheduler`? (found: schedular: vllm)"
        );
        assert_eq!(
            error("cluster:\n  replicas: 2\nzzz: 1\n"),
            "run.yml:3:1: unknown field `zzz`; expected one of cluster, seeds (found: zzz: 1)"
        );
    }

    #[test]
    fn an_unknown_variant_is_named_with_what_was_meant() {
        assert_eq!(
            error("cluster:\n  replicas: 2\n  scheduler:\n    sarati: {chunk_size: 512}\n"),
            "run.yml:4:5: cluster.scheduler: unknown value `sarati`; did you mean `sarathi`? (found: sarati: {chunk_size: 512})"
        );
    }

    #[test]
    fn a_field_inside_a_variant_is_named_with_its_path() {
        assert_eq!(
            error("cluster:\n  replicas: 2\n  scheduler:\n    sarathi:\n      chunk_size: big\n"),
            "run.yml:5:19: cluster.scheduler.sarathi.chunk_size: expected a whole number from 0 to 4294967295 (found: chunk_size: big)"
        );
    }

    #[test]
    fn values_of_the_wrong_kind_say_which_kind_was_expected() {
        assert_eq!(
            error("cluster:\n  replicas: -1\n"),
            "run.yml:2:13: cluster.replicas: expected a whole number from 0 to 4294967295 (found: replicas: -1)"
        );
        assert_eq!(
            error("cluster:\n  replicas: 1\n  exact: perhaps\n"),
            "run.yml:3:10: cluster.exact: expected true or false (found: exact: perhaps)"
        );
        assert_eq!(
            error("cluster:\n  replicas: 1\n  rate: fast\n"),
            "run.yml:3:9: cluster.rate: expected a number (found: rate: fast)"
        );
        assert_eq!(
            error("cluster: {replicas: 1}\nseeds:\n  - 1\n  - x\n"),
            "run.yml:4:5: seeds[1]: expected a whole number, 0 or above (found: - x)"
        );
    }

    #[test]
    fn a_choice_is_one() {
        for choice in ["{}", "{vllm: null, sarathi: {chunk_size: 1}}", "[vllm]"] {
            let line = error(&format!("cluster:\n  replicas: 1\n  scheduler: {choice}\n"));
            assert!(line.contains("expected one choice with its settings: `name: {}`"), "{line}");
        }
    }

    #[test]
    fn a_mapping_or_list_that_is_none_is_asked_for_by_its_look() {
        assert_eq!(
            error("cluster: 1\n"),
            "run.yml:1:10: cluster: expected a mapping: one `key: value` a line, or {} (found: cluster: 1)"
        );
        assert_eq!(
            error("cluster: {replicas: 1}\nseeds: 7\n"),
            "run.yml:2:8: seeds: expected a list: one `- value` a line, or [] (found: seeds: 7)"
        );
    }

    #[test]
    fn a_missing_field_is_named_at_its_mapping() {
        assert_eq!(
            error("cluster:\n  exact: true\n"),
            "run.yml:2:3: cluster: missing field `replicas`"
        );
    }

    #[test]
    fn every_other_error_is_one_line_that_starts_with_the_place() {
        for text in [
            "",
            "cluster: [",
            "cluster: {replicas: 1}\ncluster: {replicas: 2}\n",
            "7",
            "a: *b",
            "cluster: {replicas: 1}\n---\ncluster: {replicas: 1}\n",
            "\tcluster: 1",
            "cluster:\n  - 1\n",
            "cluster: \"\\q\"",
            "é: [\u{0}]",
        ] {
            let line = error(text);
            assert!(!line.contains(char::is_control), "{line}");
            assert!(line.starts_with("run.yml:"), "{line}");
            assert!(!line.contains(" at line "), "{line}");
        }
    }

    #[test]
    fn text_that_is_right_is_read() {
        let map: BTreeMap<String, f64> = from_str("a: 1.5\nb: 2\n", "x.yml").unwrap();
        assert_eq!(map["a"] + map["b"], 3.5);
    }

    #[test]
    fn the_closest_name_ignores_case_and_may_leave_out_the_organisation() {
        let known = ["meta-llama/Llama-2-7b-hf", "Qwen/Qwen3-8B"];
        assert_eq!(closest("llama-2-7b", known), Some("meta-llama/Llama-2-7b-hf"));
        assert_eq!(closest("qwen3-8b", known), Some("Qwen/Qwen3-8B"));
        assert_eq!(closest("gpt2", known), None);
        assert_eq!(closest("chunk", ["block_size", "chunk_size"]), Some("chunk_size"));
    }
}
