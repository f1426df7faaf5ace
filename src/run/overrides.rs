//! Reading a config file and changing single fields of it: `--set path.to.field=value`.

use super::config::RunConfig;
use crate::yaml::{self, YamlError};
use serde_json::{Map, Value};

/// Why there is no config. One line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file does not parse.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// A `--set` cannot be applied.
    #[error("--set {set}: {message}")]
    Set {
        /// As typed.
        set: String,
        /// What is wrong and what was expected.
        message: String,
    },
}

/// Fields whose value is one choice with its settings inside. Setting a field of another choice
/// changes the choice.
const CHOICES: [&str; 6] = [
    "scheduler",
    "predictor",
    "kv_cache.size",
    "workload",
    "workload.synthetic.arrivals",
    "workload.synthetic.lengths",
];

impl RunConfig {
    /// Reads a config from YAML `text` of `file`, then applies `sets` in order.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, line and column, or with the `--set` as typed.
    pub fn load(text: &str, file: &str, sets: &[String]) -> Result<Self, ConfigError> {
        // An empty document (comments only) changes nothing.
        let blank = text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'));
        let config =
            if blank { RunConfig::default() } else { yaml::from_str::<RunConfig>(text, file)? };
        sets.iter().try_fold(config, |config, set| config.with(set))
    }

    /// This config with one field changed: `path=value`, the value in YAML.
    ///
    /// # Errors
    /// When there is no such field or the value is not one of its kind.
    pub fn with(&self, set: &str) -> Result<Self, ConfigError> {
        let wrong = |message: String| ConfigError::Set { set: set.to_owned(), message };
        let Some((path, text)) = set.split_once('=') else {
            return Err(wrong("expected path=value, such as seed=7".into()));
        };
        let value: Value = yaml::from_str(text, "the value").map_err(|e| wrong(e.to_string()))?;
        let mut root = serde_json::to_value(self).map_err(|e| wrong(e.to_string()))?;
        put(&mut root, path.trim(), value).map_err(wrong)?;
        // JSON is YAML: errors are those of a config file, but for their places.
        yaml::from_str(&root.to_string(), "").map_err(|e| {
            wrong(if e.path.is_empty() { e.message } else { format!("{}: {}", e.path, e.message) })
        })
    }
}

/// Puts `value` at `path`, making the objects on the way.
fn put(root: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let parts: Vec<&str> = path.split('.').collect();
    if parts.contains(&"") {
        return Err("the path has an empty part; expected names joined by dots".into());
    }
    put_below(root, &parts, 0, value)
}

/// Puts `value` at `parts`, of which the first `depth` lead to `node`.
fn put_below(node: &mut Value, parts: &[&str], depth: usize, value: Value) -> Result<(), String> {
    let Some(part) = parts.get(depth) else {
        *node = value;
        return Ok(());
    };
    let walked = parts[..depth].join(".");
    let choice = CHOICES.contains(&walked.as_str());
    if node.is_null() || (choice && node.is_string()) {
        *node = Value::Object(Map::new());
    }
    let shown = node.to_string();
    let object = node
        .as_object_mut()
        .ok_or_else(|| format!("{walked} is {shown}, which has no field {part}"))?;
    if choice && !object.contains_key(*part) {
        object.clear();
    }
    put_below(object.entry(*part).or_insert(Value::Null), parts, depth + 1, value)
}

/// Replaces `${NAME}` in a path by the environment variable.
///
/// # Errors
/// When a variable is not set, or a brace is not closed.
pub(super) fn expand(
    path: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = path;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let tail = &rest[start + 2..];
        let Some(end) = tail.find('}') else {
            return Err(format!("{path}: `${{` without `}}`"));
        };
        let name = &tail[..end];
        match variable(name) {
            Some(value) => out.push_str(&value),
            None => {
                return Err(format!(
                    "{path}: the environment variable {name} is not set; set it to the folder it \
                     stands for, or write the path out"
                ));
            }
        }
        rest = &tail[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::KvSize;
    use crate::sim::SchedulerConfig;

    fn load(text: &str, sets: &[&str]) -> Result<RunConfig, String> {
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        RunConfig::load(text, "run.yml", &sets).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(load("", &[]).unwrap(), RunConfig::default());
        assert_eq!(load("# nothing\n\n", &[]).unwrap(), RunConfig::default());
    }

    #[test]
    fn the_resolved_config_reads_back_as_itself() {
        let text = serde_saphyr::to_string(&RunConfig::default()).unwrap();
        assert_eq!(load(&text, &[]).unwrap(), RunConfig::default());
    }

    #[test]
    fn set_changes_single_fields_and_choices() {
        let c = load(
            "seed: 1\n",
            &[
                "seed=7",
                "scheduler.vllm.max_num_seqs=64",
                "kv_cache.size.blocks=100",
                "model=org/m",
                "cluster.router=round_robin",
            ],
        )
        .unwrap();
        assert_eq!(c.seed, 7);
        assert_eq!(c.model, "org/m");
        assert_eq!(c.kv_cache.size, KvSize::Blocks(100));
        assert!(matches!(c.scheduler, SchedulerConfig::Vllm(v) if v.max_num_seqs == 64));
        let whole = load("", &["scheduler={sarathi: {chunk_size: 64}}"]).unwrap();
        assert!(matches!(whole.scheduler, SchedulerConfig::Sarathi(s) if s.chunk_size == 64));
    }

    #[test]
    fn what_cannot_be_set_says_why() {
        for (set, expected) in [
            ("seed", "--set seed: expected path=value, such as seed=7"),
            ("seed=-1", "--set seed=-1: seed: expected a whole number, 0 or above"),
            (
                "scheduler=vllm",
                "--set scheduler=vllm: scheduler.vllm: expected a mapping: one `key: value` a line, \
                 or {}",
            ),
            (
                "metrics=null",
                "--set metrics=null: metrics: expected a mapping: one `key: value` a line, or {}",
            ),
            ("seed.x=1", "--set seed.x=1: seed is 42, which has no field x"),
            ("a..b=1", "--set a..b=1: the path has an empty part; expected names joined by dots"),
        ] {
            assert_eq!(load("", &[set]).unwrap_err(), expected);
        }
        let unknown = load("", &["scheduler.sarathi.chunk_sise=3"]).unwrap_err();
        assert!(
            unknown.contains("scheduler.sarathi") && unknown.contains("unknown field `chunk_sise`"),
            "{unknown}"
        );
    }

    #[test]
    fn variables_are_expanded_and_missing_ones_named() {
        let variable = |name: &str| (name == "HOME").then(|| "/home/me".to_owned());
        assert_eq!(expand("${HOME}/a/${HOME}", variable).unwrap(), "/home/me/a//home/me");
        assert_eq!(expand("plain", variable).unwrap(), "plain");
        assert!(expand("${NOPE}/x", variable).unwrap_err().contains("NOPE is not set"));
        assert!(expand("${HOME", variable).unwrap_err().contains("without"));
    }
}
