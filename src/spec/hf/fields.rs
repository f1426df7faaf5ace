//! Typed look-ups in a config.json. Absent and `null` are the same; a value of the wrong kind is
//! an error that names the key.

use super::HfError;
use serde_json::{Map, Value};

/// The object of a config.json, or one inside it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub fn text(self, key: &str) -> Result<Option<&'a str>, HfError> {
        self.read(key, "a text", Value::as_str)
    }

    pub fn number(self, key: &str) -> Result<Option<f64>, HfError> {
        self.read(key, "a number", Value::as_f64)
    }

    pub fn flag(self, key: &str) -> Result<Option<bool>, HfError> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub fn object(self, key: &str) -> Result<Option<Fields<'a>>, HfError> {
        self.read(key, "an object", |value| value.as_object().map(Fields))
    }

    pub fn count(self, key: &str) -> Result<Option<u32>, HfError> {
        self.read(key, "a whole number", |value| {
            // Some files write 4096.0; it counts as 4096.
            let whole = value.as_f64().filter(|n| n.fract() == 0.0)?;
            (0.0..=f64::from(u32::MAX)).contains(&whole).then_some(whole as u32)
        })
    }

    pub fn need_count(self, key: &'static str) -> Result<u32, HfError> {
        self.count(key)?.ok_or(HfError::Missing { key })
    }

    fn read<T>(
        self,
        key: &str,
        expected: &'static str,
        as_kind: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, HfError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        as_kind(value).map(Some).ok_or_else(|| HfError::Bad {
            key: key.to_owned(),
            found: value.to_string().chars().take(60).collect(),
            expected: expected.to_owned(),
        })
    }
}
