//! Reading a `config.json`: dimensions by name, with limits, from the text part of multimodal models.

use serde_json::Value;

/// Largest dimension accepted, so that products of two fit 64 bits.
const LARGEST: u64 = 1 << 24;

/// Why no layers can be predicted from a config.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Not a JSON object.
    #[error("read the model's config as a JSON object")]
    NotJson(#[source] serde_json::Error),
    /// JSON, but not an object.
    #[error("read the model's config: it is no JSON object")]
    NotAnObject,
    /// A dimension is missing.
    #[error("predict the model's layers: its config has no `{0}`")]
    Missing(&'static str),
    /// A dimension is not a usable number.
    #[error("predict the model's layers: `{key}` is {value}, not a whole number from 1 to {most}")]
    NotANumber {
        key: &'static str,
        /// The value, cut to a few letters.
        value: String,
        /// The largest that is accepted.
        most: u64,
    },
    /// A list with one entry per layer has fewer.
    #[error("predict the model's layers: `{key}` does not name all {layers} layers")]
    TooShort {
        key: &'static str,
        /// Number of layers of the model.
        layers: u64,
    },
    /// An architecture whose layers are not known.
    #[error(
        "predict the model's layers: `{0}` is no architecture whose layers gemmtune knows, and a guess would plan weights that the model does not have"
    )]
    Unknown(String),
    /// An architecture whose layers are known to differ from what can be predicted.
    #[error("predict the layers of `{architecture}`: {why}")]
    Refused {
        architecture: String,
        /// What cannot be predicted.
        why: &'static str,
    },
    /// A key that gives the model weights other than its architecture's usual ones.
    #[error(
        "predict the layers of `{architecture}`: the config's `{key}` changes them ({what}), which gemmtune does not predict for this architecture"
    )]
    Key {
        architecture: String,
        key: String,
        /// What the key concerns.
        what: &'static str,
    },
    /// A kind of layer that no known family has.
    #[error(
        "predict the layers of `{architecture}`: `layer_types` has `{kind}`, which is not predicted"
    )]
    Layer {
        architecture: String,
        /// The kind of layer.
        kind: String,
    },
    /// The weights are not quantised to FP8.
    #[error("predict FP8 layers: {0}")]
    NotFp8(String),
    /// An EP size with which no server starts.
    #[error("split the experts over {ep} ranks: ep has to divide tp, which is {tp}")]
    BadExpertParallel {
        /// `--tp-size` of the server.
        tp: u32,
        /// `--ep-size` of the server.
        ep: u32,
    },
    /// TP and DP sizes with which no server starts.
    #[error(
        "split the model over {tp} ranks with attention data parallelism {dp}: tp has to be 1 to 1024 and a multiple of dp"
    )]
    BadParallel {
        /// `--tp-size` of the server.
        tp: u32,
        /// `--dp-size` of the server.
        dp: u32,
    },
}

/// A parsed `config.json`, with its text part where the model is multimodal.
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

    /// The value of a key: from the text part if the config has one with that key.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let text = self.root.get("text_config").and_then(|text| text.get(key));
        text.or_else(|| self.root.get(key))
            .filter(|value| !value.is_null())
    }

    /// A positive dimension; `None` if the key is absent.
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

    /// A dimension that must be present.
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

    /// A list of strings, one for each layer; `None` if it is anything else.
    pub(super) fn words(&self, key: &str) -> Option<Vec<String>> {
        let words = self.get(key)?.as_array()?.iter();
        words.map(|word| word.as_str().map(str::to_owned)).collect()
    }

    /// The value of the first of `keys` that is present.
    pub(super) fn first(&self, keys: &[&'static str]) -> Result<Option<u64>, ModelError> {
        for key in keys {
            if let Some(number) = self.number(key)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// The object with the language model's keys: in multimodal models, the text part.
    pub(super) fn text(&self) -> &serde_json::Map<String, Value> {
        let part = self.root.get("text_config").and_then(Value::as_object);
        part.or_else(|| self.root.as_object())
            .expect("only objects are read")
    }

    /// Keys outside the text part, in multimodal models only.
    pub(super) fn around(&self) -> impl Iterator<Item = (&String, &Value)> {
        let root = self.root.as_object();
        root.filter(|root| root.contains_key("text_config"))
            .into_iter()
            .flatten()
    }

    /// The first class that the config names, cut to a few letters.
    pub(super) fn class(&self) -> Option<String> {
        let list = self.root.get("architectures")?;
        Some(list.get(0)?.as_str()?.chars().take(80).collect())
    }

    /// The model types that the config names: of the whole, and of its text part.
    pub(super) fn model_types(&self) -> impl Iterator<Item = &str> {
        let text = self.root.get("text_config");
        [Some(&self.root), text]
            .into_iter()
            .filter_map(|part| part?.get("model_type")?.as_str())
    }

    /// The architecture, or the model type where that is missing.
    pub(super) fn architecture(&self) -> String {
        let kind = || self.model_types().next().unwrap_or("unknown");
        self.class()
            .unwrap_or_else(|| kind().chars().take(80).collect())
    }
}
