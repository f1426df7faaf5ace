//! What the catalogue holds: where each kind of file lies, and how it is called in messages.

use super::check_model_name;
use crate::spec::device::{DeviceSku, NodeSku, check_name};
use crate::spec::model::ModelSpec;
use include_dir::{Dir, include_dir};
use serde::de::DeserializeOwned;

static MODELS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/data/model_configs");
static DEVICES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/data/device_skus");
static NODES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/data/node_skus");

/// What the catalogue holds.
pub(super) trait Entry: DeserializeOwned {
    /// Folder below the data directory.
    const FOLDER: &'static str;
    /// Folders between that one and the file, plus one for the file.
    const DEPTH: u32;
    /// What one is called.
    const NOUN: &'static str;
    /// The command that lists them.
    const COMMAND: &'static str;
    /// How to add one, where a command does.
    const CURE: &'static str;
    /// The files compiled in.
    fn embedded() -> &'static Dir<'static>;
    fn name(&self) -> &str;
    fn aliases(&self) -> &[String];
    /// Checks the numbers; the error is one line.
    fn check(&self) -> Result<(), String>;
    /// Checks that `name` may become a path.
    fn check_name(name: &str) -> Result<(), String> {
        check_name(name)
    }
}

impl Entry for ModelSpec {
    const FOLDER: &'static str = "model_configs";
    const DEPTH: u32 = 2;
    const NOUN: &'static str = "model";
    const COMMAND: &'static str = "vidur models";
    const CURE: &'static str = ", `vidur models add config.json` adds one";
    fn embedded() -> &'static Dir<'static> {
        &MODELS
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn aliases(&self) -> &[String] {
        &self.aliases
    }
    fn check(&self) -> Result<(), String> {
        for name in std::iter::once(&self.name).chain(&self.aliases) {
            check_model_name(name)?;
        }
        ModelSpec::check(self)
    }
    fn check_name(name: &str) -> Result<(), String> {
        check_model_name(name)
    }
}

impl Entry for DeviceSku {
    const FOLDER: &'static str = "device_skus";
    const DEPTH: u32 = 1;
    const NOUN: &'static str = "device";
    const COMMAND: &'static str = "vidur devices";
    const CURE: &'static str = "";
    fn embedded() -> &'static Dir<'static> {
        &DEVICES
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn aliases(&self) -> &[String] {
        &self.aliases
    }
    fn check(&self) -> Result<(), String> {
        DeviceSku::check(self)
    }
}

impl Entry for NodeSku {
    const FOLDER: &'static str = "node_skus";
    const DEPTH: u32 = 1;
    const NOUN: &'static str = "node";
    const COMMAND: &'static str = "vidur devices";
    const CURE: &'static str = "";
    fn embedded() -> &'static Dir<'static> {
        &NODES
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn aliases(&self) -> &[String] {
        &[]
    }
    fn check(&self) -> Result<(), String> {
        NodeSku::check(self)
    }
}
