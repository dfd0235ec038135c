//! Rules about the JSON files of aiter's Triton GEMM.

use super::super::aiter_triton::{Configs, Fault, Rules};
use super::{Sink, rules};

/// Checks one file; returns how many configurations it has. Something counts as a fault if it is one at any revision
/// that may read the file.
pub(super) fn check(bytes: &[u8], sink: &mut Sink<'_>) -> usize {
    let configs = match Configs::read(bytes) {
        Ok(configs) => configs,
        Err(error) => {
            sink.add(&rules::FILE_UNREADABLE, None, error.to_string());
            return 0;
        }
    };
    let mut told = Vec::new();
    for &revision in sink.revisions {
        for fault in configs.faults(Rules::from(revision)) {
            if told.contains(&fault) {
                continue;
            }
            let rule = match &fault {
                Fault::Raises { .. } => &rules::KEYS_INCOMPLETE,
                Fault::Asserts { .. } => &rules::TILE_NOT_SCALE_BLOCK,
                Fault::Incomplete { .. } => &rules::CONFIG_KEY_MISSING,
                Fault::NeverFound { .. } => &rules::KEY_NEVER_ASKED,
            };
            sink.add(rule, None, fault.to_string());
            told.push(fault);
        }
    }
    configs.len()
}
