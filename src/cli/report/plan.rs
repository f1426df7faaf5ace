use crate::cli::Failure;
use serde_json::Value;
use std::path::Path;
pub fn page(_: &Path, _: &Value) -> Result<String, Failure> {
    Err(Failure::user("not yet"))
}
