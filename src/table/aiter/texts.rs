//! Serialises shared text: serde supports `Arc<str>` only with a feature that would apply to everything.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Text;

/// Types with shared text, converted to and from owned text.
pub(super) trait Texts: Sized {
    type Plain: Serialize + for<'de> Deserialize<'de>;
    fn plain(&self) -> Self::Plain;
    fn shared(plain: Self::Plain) -> Self;
}

impl Texts for Option<Text> {
    type Plain = Option<String>;

    fn plain(&self) -> Self::Plain {
        self.as_deref().map(str::to_owned)
    }

    fn shared(plain: Self::Plain) -> Self {
        plain.map(Into::into)
    }
}

impl Texts for Vec<(Text, Text)> {
    type Plain = Vec<(String, String)>;

    fn plain(&self) -> Self::Plain {
        let pairs = self.iter();
        pairs.map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    fn shared(plain: Self::Plain) -> Self {
        let pairs = plain.into_iter();
        pairs.map(|(a, b)| (a.into(), b.into())).collect()
    }
}

pub(super) fn serialize<T: Texts, S: Serializer>(
    text: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    text.plain().serialize(serializer)
}

pub(super) fn deserialize<'de, T: Texts, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    T::Plain::deserialize(deserializer).map(T::shared)
}
