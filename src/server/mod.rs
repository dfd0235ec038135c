//! The servers: the reference engine and SGLang. Each implements [`crate::engine::ports::Server`].

pub(crate) mod reference;
pub(crate) mod sglang;
#[cfg(test)]
pub(crate) mod toy;
