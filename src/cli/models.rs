//! `vidur models`: list the models in the catalogue, show one, add one.

use super::Failure;
use super::table::{self, number, text};
use crate::spec::catalog::{DEFAULT_DATA_DIR, check_model_name};
use crate::spec::hf;
use crate::spec::model::ModelSpec;
use clap::Subcommand;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Arguments of `vidur models`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Folder whose files go before the built-in ones [default: data, where it exists].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print one model as YAML.
    Show {
        /// Its id, an alias, or a .yml file.
        name: String,
        /// Folder whose files go before the built-in ones [default: data, where it exists].
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Add a model from its Hugging Face config.json.
    Add(Add),
}

#[derive(Debug, clap::Args)]
struct Add {
    /// The config.json.
    config: PathBuf,
    /// Id to store it under [default: what the file states].
    #[arg(long, value_name = "ORG/MODEL")]
    name: Option<String>,
    /// Folder to write to.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Replace a file that is there already.
    #[arg(long)]
    force: bool,
}

/// Runs `vidur models`.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        None => list(&args.list),
        Some(Command::Show { name, data_dir }) => table::print_yaml(
            &super::devices::open(data_dir.as_deref())?.model(&name).map_err(Failure::user)?,
        ),
        Some(Command::Add(args)) => table::print(&add(&args)?),
    }
}

/// A model with what follows from its numbers.
#[derive(Serialize)]
struct Derived {
    #[serde(flatten)]
    model: ModelSpec,
    params: u64,
    weight_bytes: f64,
    kv_bytes_per_token: f64,
}

fn list(args: &List) -> Result<(), Failure> {
    let catalog = super::devices::open(args.data_dir.as_deref())?;
    let models = catalog.models().map_err(Failure::user)?;
    if args.json {
        let derived = models.into_iter().map(|model| Derived {
            params: model.params(),
            weight_bytes: model.weight_bytes(),
            kv_bytes_per_token: model.kv_bytes_per_token(),
            model,
        });
        return table::print_json(&derived.collect::<Vec<_>>());
    }
    table::print(&as_table(&models, table::window_width()))
}

fn as_table(models: &[ModelSpec], width: Option<usize>) -> String {
    let columns = [
        text("model"),
        number("layers").expendable(3),
        number("hidden").expendable(5),
        number("heads/kv").expendable(2),
        number("head dim").expendable(4),
        number("context"),
        number("params B"),
        number("weights"),
        number("KV B/token").expendable(1),
    ];
    let rows: Vec<Vec<String>> = models
        .iter()
        .map(|m| {
            vec![
                m.name.clone(),
                m.num_layers.to_string(),
                m.hidden_size.to_string(),
                format!("{}/{}", m.num_attention_heads, m.num_key_value_heads),
                m.head_dim.to_string(),
                m.max_position_embeddings.to_string(),
                format!("{:.2}", m.params() as f64 / 1e9),
                format!("{:.1} GiB", m.weight_bytes() / f64::from(1 << 30)),
                format!("{:.0}", m.kv_bytes_per_token()),
            ]
        })
        .collect();
    table::render(&columns, &rows, width)
}

/// Adds the model and says what was written and what comes next.
fn add(args: &Add) -> Result<String, Failure> {
    let shown = args.config.display();
    let text = std::fs::read_to_string(&args.config)
        .map_err(|error| Failure::user(format!("{shown}: cannot be read: {error}")))?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => hf::stated_name(&text).ok_or_else(|| {
            Failure::user(format!(
                "{shown}: `_name_or_path` states no org/model; name the model with --name org/model"
            ))
        })?,
    };
    check_model_name(&name).map_err(|problem| Failure::user(format!("--name: {problem}")))?;
    let source = format!("Hugging Face config.json of {name}, read by `vidur models add`");
    let model = hf::from_config_json(&text, &name, &source)
        .map_err(|problem| Failure::user(format!("{shown}: {problem}")))?;
    let path = write(&model, &args.data_dir, args.force)?;
    Ok(format!(
        "Wrote {}: {:.2} B parameters, {} layers, {} bytes of KV cache per token.\nNext: vidur profile mlp --models {name}\n",
        path.display(),
        model.params() as f64 / 1e9,
        model.num_layers,
        model.kv_bytes_per_token(),
    ))
}

/// Writes the model's file in full or not at all, and says where. The name must have been checked.
fn write(model: &ModelSpec, data_dir: &Path, force: bool) -> Result<PathBuf, Failure> {
    let path = data_dir.join("model_configs").join(format!("{}.yml", model.name));
    let failed = |error: std::io::Error| {
        Failure::user(format!("{}: cannot be written: {error}", path.display()))
    };
    let folder = path.parent().unwrap_or(data_dir);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut builder = tempfile::Builder::new();
    // Readable as any new file is, not only by its owner.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(failed)?;
    let yaml = serde_saphyr::to_string(model).map_err(Failure::internal)?;
    file.write_all(yaml.as_bytes()).map_err(failed)?;
    let moved = if force { file.persist(&path) } else { file.persist_noclobber(&path) };
    match moved {
        Ok(_) => Ok(path),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Failure::user(format!(
                "{} exists; --force replaces it, --name stores the model under another name",
                path.display()
            )))
        }
        Err(error) => Err(failed(error.error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::catalog::Catalog;

    const CONFIG: &str = r#"{"_name_or_path": "acme/tiny", "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512,
        "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 1000}"#;

    fn add_to(dir: &Path, config: &str, name: Option<&str>, force: bool) -> Result<String, String> {
        let path = dir.join("config.json");
        std::fs::write(&path, config).unwrap();
        let name = name.map(str::to_owned);
        add(&Add { config: path, name, data_dir: dir.join("data"), force })
            .map_err(|failure| failure.words().to_owned())
    }

    #[test]
    fn an_added_model_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let said = add_to(dir.path(), CONFIG, None, false).unwrap();
        assert!(said.ends_with("Next: vidur profile mlp --models acme/tiny\n"), "{said}");
        let model = Catalog::open(Some(&dir.path().join("data"))).model("acme/tiny").unwrap();
        assert_eq!((model.num_layers, model.head_dim), (2, 16));
        let folder = dir.path().join("data/model_configs/acme");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_model_is_replaced_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        add_to(dir.path(), CONFIG, None, false).unwrap();
        let other = CONFIG.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
        let refused = add_to(dir.path(), &other, None, false).unwrap_err();
        assert!(refused.contains("tiny.yml exists; --force replaces it"), "{refused}");
        let catalog = Catalog::open(Some(&dir.path().join("data")));
        assert_eq!(catalog.model("acme/tiny").unwrap().num_layers, 2);
        add_to(dir.path(), &other, None, true).unwrap();
        assert_eq!(catalog.model("acme/tiny").unwrap().num_layers, 3);
    }

    #[test]
    fn names_that_leave_the_folder_are_refused_and_write_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../evil", "acme/../../evil", "/tmp/evil", "a/b/c", "evil", "a/..", "a/ b"] {
            let refused = add_to(dir.path(), CONFIG, Some(name), true).unwrap_err();
            assert!(refused.contains("is no model name; expected org/model"), "{name}: {refused}");
        }
        assert!(!dir.path().join("data").exists());
    }

    #[test]
    fn without_a_name_in_the_file_one_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let nameless = CONFIG.replace("acme/tiny", "/checkpoints/last");
        let refused = add_to(dir.path(), &nameless, None, false).unwrap_err();
        assert!(refused.ends_with("name the model with --name org/model"), "{refused}");
    }

    #[test]
    fn the_list_fits_a_window_of_80_characters() {
        let models = Catalog::open(Some(Path::new("no-such-folder"))).models().unwrap();
        let table = as_table(&models, Some(80));
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        assert!(table.contains("meta-llama/Llama-2-7b-hf") && table.contains("6.74"), "{table}");
    }
}
