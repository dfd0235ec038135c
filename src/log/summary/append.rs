//! Adding a later part of a log to the summary of what precedes it.

use super::{ENTRIES_MAX, LogSummary, MALFORMED_SHOWN, add_one};

impl LogSummary {
    /// Adds a later part of the same log; the result equals reading both in one go. What only record files contain is
    /// not part of a log.
    pub(in crate::log) fn append(&mut self, later: Self) {
        self.bytes += later.bytes;
        self.malformed += later.malformed;
        self.left_out = self.left_out.saturating_add(later.left_out);
        let room = MALFORMED_SHOWN.saturating_sub(self.malformed_shown.len());
        self.malformed_shown
            .extend(later.malformed_shown.into_iter().take(room));
        append_counts(&mut self.dispatch, later.dispatch);
        append_counts(&mut self.captures, later.captures);
        append_counts(&mut self.decode_batches, later.decode_batches);
        append_counts(&mut self.decode_eager, later.decode_eager);
        append_counts(&mut self.prefill_batches, later.prefill_batches);
        append_counts(&mut self.limits, later.limits);
        append_counts(&mut self.legacy_tables, later.legacy_tables);
        for key in later.fused_moe {
            self.add_fused_moe(key);
        }
        self.fmoe.append(later.fmoe);
        for reuse in later.reused.into_values() {
            self.add_reuse(reuse);
        }
        for (weight, said) in later.nk_only {
            if self.nk_only.len() >= ENTRIES_MAX && !self.nk_only.contains_key(&weight) {
                continue;
            }
            let known = self.nk_only.entry(weight).or_default();
            known.default_config += said.default_config;
            known.tuned_config += said.tuned_config;
            known.device = said.device;
            known.file = said.file;
        }
        // Sorted, so that the same shapes are kept each time when there are more than the limit.
        let mut counts: Vec<_> = later.counts.into_iter().collect();
        counts.sort_unstable();
        for (key, count) in counts {
            self.add(key, count);
        }
        self.moe.append(later.moe);
        self.append_lookups(later.current);
    }
}

fn append_counts<K: Ord>(
    counts: &mut std::collections::BTreeMap<K, u64>,
    later: std::collections::BTreeMap<K, u64>,
) {
    for (key, count) in later {
        add_one(counts, key, count);
    }
}
