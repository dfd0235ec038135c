//! Reading a `config.json`: dimensions by name, with limits, from the text part of multimodal models.

use serde_json::Value;

/// No dimension of a model is larger; products of two then fit 64 bits.
const LARGEST: u64 = 1 << 24;

/// A config from which no layers can be predicted.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Not a JSON object.
    #[error("read the model's config as a JSON object")]
    NotJson(#[source] serde_json::Error),
    /// JSON, but no object.
    #[error("read the model's config: it is no JSON object")]
    NotAnObject,
    /// A dimension is missing.
    #[error("predict the model's layers: its config has no `{0}`")]
    Missing(&'static str),
    /// A dimension is no usable number.
    #[error(
        "predict the model's layers: `{key}` is {value}, not a whole number from 1 to 16777216"
    )]
    NotANumber {
        /// The key.
        key: &'static str,
        /// The value, shortened.
        value: String,
    },
    /// The weights are not quantised to FP8.
    #[error("predict FP8 layers: {0}")]
    NotFp8(String),
    /// TP and DP sizes that no server starts with.
    #[error(
        "split the model over {tp} ranks with attention data parallelism {dp}: tp has to be 1 to 1024 and a multiple of dp"
    )]
    BadParallel {
        /// `--tp-size`.
        tp: u32,
        /// `--dp-size`.
        dp: u32,
    },
}

/// A parsed config.
#[derive(Debug)]
pub(super) struct Config {
    root: Value,
}

impl Config {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ModelError> {
        let root: Value = serde_json::from_slice(bytes).map_err(ModelError::NotJson)?;
        if root.is_object() {
            Ok(Self { root })
        } else {
            Err(ModelError::NotAnObject)
        }
    }

    /// A value by key, from the text part if the config has one and the key is there.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let text = self.root.get("text_config").and_then(|text| text.get(key));
        text.or_else(|| self.root.get(key))
            .filter(|value| !value.is_null())
    }

    /// A positive dimension, if the key is there.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<u64>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value
            .as_u64()
            .filter(|number| (1..=LARGEST).contains(number))
        {
            Some(number) => Ok(Some(number)),
            None => Err(ModelError::NotANumber {
                key,
                value: value.to_string().chars().take(40).collect(),
            }),
        }
    }

    /// A dimension that must be there.
    pub(super) fn needed(&self, key: &'static str) -> Result<u64, ModelError> {
        self.number(key)?.ok_or(ModelError::Missing(key))
    }

    /// A count that may be 0 or absent.
    pub(super) fn count(&self, key: &'static str) -> Result<u64, ModelError> {
        match self.get(key).and_then(Value::as_u64) {
            Some(0) => Ok(0),
            _ => Ok(self.number(key)?.unwrap_or(0)),
        }
    }

    /// The first of `keys` that is there.
    pub(super) fn first(&self, keys: &[&'static str]) -> Result<Option<u64>, ModelError> {
        for key in keys {
            if let Some(number) = self.number(key)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Architecture, or the model type where that is missing.
    pub(super) fn architecture(&self) -> String {
        let named = self
            .root
            .get("architectures")
            .and_then(|list| list.get(0))
            .and_then(Value::as_str);
        let kind = || self.get("model_type").and_then(Value::as_str);
        named
            .or_else(kind)
            .unwrap_or("unknown")
            .chars()
            .take(80)
            .collect()
    }
}
