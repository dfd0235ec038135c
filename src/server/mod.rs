//! What serves: the reference engine, and SGLang. Each fills [`crate::engine::ports::Server`].

pub(crate) mod reference;
pub(crate) mod sglang;
