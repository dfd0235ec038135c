//! SGLang's own Triton kernel `w8a8_block_fp8_matmul`.

use super::Facts;
use super::runs::{Runs, by_table};
use crate::problem::dtype::FLOAT8;
use crate::problem::library::Library;
use crate::problem::revision::Revision;

pub(super) const FACTS: Facts = Facts {
    name: "w8a8_block_fp8_matmul",
    dtypes: &FLOAT8,
    element_bytes: 1.0,
    scale_block: Some(128),
    linears: &["triton_w8a8_block_fp8_linear"],
    libraries: &[Library::Triton],
    // It has no CSV at any revision; it gets the columns of aiter's block-scaled operation, so that its results can be
    // recorded in the same form.
    libtype_from: Some(Revision::P),
    weight_dtype_from: None,
    can_be_probed: false,
    without_table: by_table,
    hit: |_, _| Runs::RowKernel("the Triton kernel with this configuration"),
    miss: |_| Runs::Default("the Triton kernel with its default configuration"),
    aiter: None,
};
