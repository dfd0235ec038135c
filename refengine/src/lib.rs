//! The reference engine: a small, real FP8 inference server on the CPU.
//!
//! It exists so that every stage of gemmtune runs for real on a machine without a GPU. It serves a
//! decoder-only model whose linear layers are block-scaled FP8 GEMMs, chosen per (M, N, K) from a
//! tuned table exactly as aiter chooses them.
