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
    #[error("predict the model's layers: `{key}` is {value}, not a whole number from 1 to {most}")]
    NotANumber {
        key: &'static str,
        /// The value, shortened.
        value: String,
        /// The largest that is taken.
        most: u64,
    },
    /// A list with one entry per layer has fewer.
    #[error("predict the model's layers: `{key}` does not name all {layers} layers")]
    TooShort {
        key: &'static str,
        /// Layers of the model.
        layers: u64,
    },
    /// No architecture whose layers are known.
    #[error(
        "predict the model's layers: `{0}` is no architecture whose layers gemmtune knows, and a guess would plan weights that the model does not have"
    )]
    Unknown(String),
    /// An architecture whose layers are known to be others than can be predicted.
    #[error("predict the layers of `{architecture}`: {why}")]
    Refused {
        /// The architecture.
        architecture: String,
        /// What is not predicted of it.
        why: &'static str,
    },
    /// A key that gives the model other weights than its architecture has otherwise.
    #[error(
        "predict the layers of `{architecture}`: the config's `{key}` changes them ({what}), which gemmtune does not predict for this architecture"
    )]
    Key {
        /// The architecture.
        architecture: String,
        key: String,
        /// What the key is of.
        what: &'static str,
    },
    /// A layer of a kind that no family builds.
    #[error(
        "predict the layers of `{architecture}`: `layer_types` has `{kind}`, which is not predicted"
    )]
    Layer {
        /// The architecture.
        architecture: String,
        /// The kind of layer.
        kind: String,
    },
    /// The weights are not quantised to FP8.
    #[error("predict FP8 layers: {0}")]
    NotFp8(String),
    /// An EP size that no server starts with.
    #[error("split the experts over {ep} ranks: ep has to divide tp, which is {tp}")]
    BadExpertParallel {
        /// `--tp-size`.
        tp: u32,
        /// `--ep-size`.
        ep: u32,
    },
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
                most: LARGEST,
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

    /// A list of words, one per layer; nothing where it is no list of words only.
    pub(super) fn words(&self, key: &str) -> Option<Vec<String>> {
        let words = self.get(key)?.as_array()?.iter();
        words.map(|word| word.as_str().map(str::to_owned)).collect()
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

    /// The object with the language model's keys: the text part of multimodal models.
    pub(super) fn text(&self) -> &serde_json::Map<String, Value> {
        let part = self.root.get("text_config").and_then(Value::as_object);
        part.or_else(|| self.root.as_object())
            .expect("only objects are read")
    }

    /// Keys around the text part, of multimodal models only.
    pub(super) fn around(&self) -> impl Iterator<Item = (&String, &Value)> {
        let root = self.root.as_object();
        root.filter(|root| root.contains_key("text_config"))
            .into_iter()
            .flatten()
    }

    /// The class that the config names first, shortened.
    pub(super) fn class(&self) -> Option<String> {
        let list = self.root.get("architectures")?;
        Some(list.get(0)?.as_str()?.chars().take(80).collect())
    }

    /// The kinds of model that the config names: of the whole, and of its text part.
    pub(super) fn model_types(&self) -> impl Iterator<Item = &str> {
        let text = self.root.get("text_config");
        [Some(&self.root), text]
            .into_iter()
            .filter_map(|part| part?.get("model_type")?.as_str())
    }

    /// Architecture, or the model type where that is missing.
    pub(super) fn architecture(&self) -> String {
        let kind = || self.model_types().next().unwrap_or("unknown");
        self.class()
            .unwrap_or_else(|| kind().chars().take(80).collect())
    }
}
