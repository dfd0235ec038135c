//! Which operation is meant where a file, a log line or a record does not name it.

use super::{LookupLine, Op};
use crate::problem::dtype::INT8;
use crate::problem::revision::Revision;

impl Op {
    /// The operation that is assumed where nothing names another: the playbook's.
    pub const UNSAID: Self = Self::Blockscale;

    /// The operation that serves a model whose weights have one scale per output channel.
    pub const PER_CHANNEL: Self = Self::Bpreshuffle;

    /// The operation that a kernel belongs to, where its name alone tells.
    pub fn of_kernel_name(name: &str) -> Option<Self> {
        let owns = |op: &Self| {
            op.aiter()
                .is_some_and(|aiter| name.starts_with(aiter.own_names))
        };
        Self::ALL.into_iter().find(owns)
    }

    /// The operation whose current tables have, or lack, a column for the weight's dtype and one for the library.
    pub fn of_columns(weight_dtype: bool, libtype: bool) -> Self {
        if !weight_dtype {
            return Self::UNSAID;
        }
        let alike = |op: &Self| {
            let facts = op.facts();
            facts.weight_dtype_from.is_some() && facts.libtype_from.is_some() == libtype
        };
        Self::ALL.into_iter().find(alike).unwrap_or(Self::UNSAID)
    }

    /// The operation of an untuned table that is keyed by the weight's dtype, given the `dtype` of its first row:
    /// INT8 weights occur only in the plain operation.
    pub fn of_weight_dtype(dtype: &str) -> Self {
        Self::of_columns(true, dtype != INT8)
    }

    /// The operation that a record's text means by naming it, its linear, or aiter alone. The playbook's text names
    /// `gemm_a8w8_blockscale / bpreshuffle` as one pair of candidates: that is the plain operation unless stated
    /// otherwise, because the hook sits above the choice between the two.
    pub fn of_text(text: &[u8]) -> Option<Self> {
        let names = |name: &str| memchr::memmem::find(text, name.as_bytes()).is_some();
        let own = Self::ALL.into_iter().filter(|op| op.aiter().is_none());
        own.into_iter()
            .find(|op| names(op.name()) || op.facts().linears.iter().any(|linear| names(linear)))
            .or_else(|| (names("aiter") || names(Self::UNSAID.name())).then_some(Self::UNSAID))
    }

    /// The operation that every one of `identities` (which a server logs for its linears) serves, if it is one of
    /// SGLang's own, else [`Self::UNSAID`].
    pub fn of_identities(identities: &[&str]) -> Self {
        let serves = |op: &Self| {
            let linears = op.facts().linears;
            let is_one = |said: &&str| linears.iter().any(|linear| said.starts_with(linear));
            op.aiter().is_none() && !identities.is_empty() && identities.iter().all(is_one)
        };
        Self::ALL.into_iter().find(serves).unwrap_or(Self::UNSAID)
    }

    /// The operation that logged a look-up in `form`. Tables may have any name: where `named`, the file's family,
    /// does not use that format, it is the operation that the format is mostly used for.
    pub fn of_line(form: LookupLine, has_libtype: bool, named: Option<Self>) -> Self {
        let logs = |op: &Self| {
            op.aiter().is_some_and(|aiter| aiter.lines.contains(&form))
                && (!has_libtype || op.facts().libtype_from.is_some())
        };
        let mostly = |op: &Self| {
            logs(op)
                && op
                    .aiter()
                    .is_some_and(|aiter| aiter.lines.first() == Some(&form))
        };
        named
            .filter(logs)
            .or_else(|| Self::ALL.into_iter().find(mostly))
            .unwrap_or(Self::UNSAID)
    }

    /// Whether the tables of this operation were keyed by the weight's dtype from the first known revision on.
    pub fn is_always_keyed_by_dtype(self) -> bool {
        self.facts().weight_dtype_from == Some(Revision::ALL[0])
    }

    /// Whether they are keyed by it today but were not always.
    pub fn became_keyed_by_dtype(self) -> bool {
        self.facts().weight_dtype_from.is_some() && !self.is_always_keyed_by_dtype()
    }
}
