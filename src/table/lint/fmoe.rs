//! Checks of aiter's fused-MoE tables: whether a look-up can find a row, and whether its times are plausible.

use std::collections::HashMap;

use super::super::fmoe::rules::{ActivationRule, FALLBACK_TAG, Release, Rules, TagRule};
use super::super::fmoe::table::{Row, TEXTS, Table, TableError};
use super::super::roofline::{Device, gfx_of_cu_num};
use super::{Sink, rules};
use crate::problem::op::fused_moe_aiter::ERR_LIMIT;
use crate::table::aiter::is_unset;

/// Sizes of models as (hidden, intermediate, routed experts, experts for each token), from their `config.json`.
const MODELS: [(&str, u32, u32, u32, u32); 8] = [
    ("DeepSeek-V3", 7168, 2048, 256, 8),
    ("Kimi-K2", 7168, 2048, 384, 8),
    ("GLM-5", 6144, 2048, 256, 8),
    ("Qwen3-235B", 4096, 1536, 128, 8),
    ("Qwen3-30B", 2048, 768, 128, 8),
    ("Qwen3-Coder-480B", 6144, 2560, 160, 8),
    ("Qwen3-Next-80B", 2048, 512, 512, 10),
    ("MiniMax-M2", 3072, 1536, 256, 8),
];

/// Checks the table in `bytes`; returns the number of its rows.
pub(super) fn check(name: &str, bytes: &[u8], sink: &mut Sink<'_>) -> usize {
    let table = match Table::read(name, bytes) {
        Ok(table) => table,
        Err(error) => {
            let rule = match error {
                TableError::MissingColumns { .. } => &rules::COLUMN_MISSING,
                _ => &rules::FILE_UNREADABLE,
            };
            sink.add(rule, Some(1), error.to_string());
            return 0;
        }
    };
    if table.rows.is_empty() && table.faults.is_empty() {
        sink.add(&rules::TABLE_EMPTY, Some(1), "a header and no row");
    }
    if table.no_final_newline {
        sink.add(&rules::NO_FINAL_NEWLINE, None, "the last line has no end");
    }
    for fault in &table.faults {
        let rule = if fault.drops_row {
            &rules::LINE_UNREADABLE
        } else {
            &rules::CELL_NOT_A_NUMBER
        };
        // The rule about times reports these itself.
        if !fault.what.contains("column us") {
            sink.add(rule, Some(fault.line), &fault.what);
        }
    }
    let releases: Vec<Rules> = {
        let mut releases: Vec<Release> = sink
            .revisions
            .iter()
            .map(|revision| Release::of_revision(*revision))
            .collect();
        releases.dedup();
        releases.into_iter().map(Rules::new).collect()
    };
    for row in &table.rows {
        spelling(row, sink);
        token(row, &releases, sink);
        times(row, sink);
        errors(row, sink);
        kernels(&table, row, sink);
        tags(row, &releases, sink);
        roofline(row, sink);
    }
    keys(&table, &releases, sink);
    copies(&table, sink);
    expert_parallel(&table, &releases, sink);
    no_architecture(&table, &releases, sink);
    table.rows.len()
}

fn spelling(row: &Row, sink: &mut Sink<'_>) {
    for (column, text) in TEXTS.iter().zip(&row.texts) {
        let prefix = match *column {
            "act_type" => "ActivationType.",
            "q_type" => "QuantType.",
            _ => "torch.",
        };
        if !text.starts_with(prefix) {
            sink.add(
                &rules::MOE_KEY_MISSPELT,
                Some(row.line),
                format!("`{text}` in column {column}; a look-up has `{prefix}…`"),
            );
        }
    }
    for (column, flag) in ["use_g1u1", "doweight_stage1"].iter().zip(row.flags) {
        if flag.is_none() {
            sink.add(
                &rules::MOE_KEY_MISSPELT,
                Some(row.line),
                format!("column {column} is neither 0 nor 1"),
            );
        }
    }
}

fn token(row: &Row, releases: &[Rules], sink: &mut Sink<'_>) {
    let never = |rules: &Rules| !rules.rounding.tokens().contains(&row.token);
    if releases.iter().all(never) {
        let rounded: Vec<String> = releases
            .iter()
            .map(|rules| rules.rounding.token(row.token).to_string())
            .collect();
        sink.add(
            &rules::MOE_TOKEN_UNREACHABLE,
            Some(row.line),
            format!(
                "token={}: so many tokens are looked up at {}",
                row.token,
                rounded.join(" or ")
            ),
        );
    }
}

fn times(row: &Row, sink: &mut Sink<'_>) {
    match row.us[2] {
        Some(us) if us.is_finite() && us > 0.0 => {}
        Some(us) => sink.add(&rules::US_INVALID, Some(row.line), format!("us is {us}")),
        None => sink.add(&rules::US_INVALID, Some(row.line), "us is no number"),
    }
}

fn errors(row: &Row, sink: &mut Sink<'_>) {
    for (column, err) in ["err1", "err2"].iter().zip(row.err) {
        if let Some(err) = err.filter(|err| *err > ERR_LIMIT) {
            sink.add(
                &rules::MOE_ERR_RATIO_HIGH,
                Some(row.line),
                format!("{column} is {:.1} %", 100.0 * err),
            );
        }
    }
}

fn kernels(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    let unnamed = |at: usize| row.kernels[at].is_none();
    if unnamed(0) || (unnamed(1) && !row.run_1stage) {
        let column = if unnamed(0) {
            "kernelName1"
        } else {
            "kernelName2"
        };
        sink.add(
            &rules::KERNEL_NAME_UNSET,
            Some(row.line),
            format!(
                "{column} is empty in a row of {}",
                if row.run_1stage {
                    "one stage"
                } else {
                    "two stages"
                }
            ),
        );
    }
    let empty = row.xbf16.as_deref().is_some_and(is_unset);
    if row.run_1stage && empty && table.has("xbf16") {
        sink.add(
            &rules::MOE_CELL_EMPTY,
            Some(row.line),
            "xbf16 is empty in a row of one stage",
        );
    }
}

fn tags(row: &Row, releases: &[Rules], sink: &mut Sink<'_>) {
    if &*row.tag == FALLBACK_TAG
        && releases
            .iter()
            .all(|rules| rules.tags == TagRule::NoFallback)
    {
        sink.add(
            &rules::MOE_FALLBACK_ROW,
            Some(row.line),
            format!("tagged {FALLBACK_TAG}"),
        );
    }
}

/// Bytes of a weight element of a dtype; `None` for an unknown one.
fn bytes_of(dtype: &str) -> Option<f64> {
    Some(match dtype.strip_prefix("torch.")? {
        "float8_e4m3fn" | "float8_e4m3fnuz" | "int8" => 1.0,
        "bfloat16" | "float16" => 2.0,
        "float4_e2m1fn_x2" | "int4" => 0.5,
        _ => return None,
    })
}

fn roofline(row: &Row, sink: &mut Sink<'_>) {
    let Some(us) = row.us[2].filter(|us| us.is_finite() && *us > 0.0) else {
        return;
    };
    let gfx = row.gfx.as_deref().or_else(|| gfx_of_cu_num(row.cu_num));
    let device = gfx.and_then(|gfx| Device::of_key(gfx, row.cu_num));
    let (Some(device), Some(weight)) = (device, bytes_of(row.q_dtype_w())) else {
        return;
    };
    let gates = if row.flags[0] == Some(true) { 2.0 } else { 1.0 };
    let expert = (gates + 1.0) * f64::from(row.model_dim) * f64::from(row.inter_dim);
    let pairs = f64::from(row.token) * f64::from(row.topk);
    let fp4 = [row.q_dtype_a(), row.q_dtype_w()]
        .iter()
        .any(|dtype| bytes_of(dtype) == Some(0.5));
    let peak = match weight {
        2.0 => device.fp8_flops / 2.0,
        _ if fp4 => device.fp4_flops.unwrap_or(device.fp8_flops),
        _ => device.fp8_flops,
    };
    let reached = 2.0 * pairs * expert / us * 1e6;
    if reached > peak {
        sink.add(
            &rules::ABOVE_ROOFLINE,
            Some(row.line),
            format!(
                "{us} us for {} tokens means {:.0} TFLOPS; {} does at most {:.0}",
                row.token,
                reached / 1e12,
                device.name,
                peak / 1e12
            ),
        );
        return;
    }
    let share = (f64::from(row.topk) / f64::from(row.expert.max(1))).min(1.0);
    let touched = f64::from(row.expert) * (1.0 - (1.0 - share).powf(f64::from(row.token)));
    let moved = touched * expert * weight;
    // The part of the weights that may still be in the last-level cache is subtracted.
    if (moved - device.cache_bytes) / us * 1e6 > device.memory_most {
        sink.add(
            &rules::ABOVE_MEMORY,
            Some(row.line),
            format!(
                "{us} us for the weights of {touched:.0} experts, which {} tokens touch, means {:.0} GB/s; memory has {:.0}",
                row.token,
                moved / us / 1e3,
                device.memory_most / 1e9
            ),
        );
    }
}

/// The parts of a key besides the activation.
type Rest<'a> = (Option<&'a str>, [u32; 6], [&'a str; 4], [Option<bool>; 2]);

fn rest(row: &Row, keys_gfx: bool) -> Rest<'_> {
    let numbers = row.numbers();
    let texts = [1, 2, 3, 4].map(|at| &*row.texts[at]);
    (keys_gfx.then(|| row.gfx_or("")), numbers, texts, row.flags)
}

fn keys(table: &Table, releases: &[Rules], sink: &mut Sink<'_>) {
    let Some(newest) = releases.last() else {
        return;
    };
    let ignored = releases
        .iter()
        .all(|rules| rules.activation == ActivationRule::Ignored);
    let mut first: HashMap<Rest<'_>, &Row> = HashMap::new();
    let mut exact: HashMap<(Rest<'_>, &str), &Row> = HashMap::new();
    for row in &table.rows {
        let is_in = match newest.tags {
            TagRule::All => true,
            TagRule::Untagged => row.tag.is_empty(),
            TagRule::NoFallback => &*row.tag != FALLBACK_TAG,
        };
        if !is_in {
            continue;
        }
        let rest = rest(row, newest.keys_gfx);
        if let Some(twin) = exact.get(&(rest, row.act_type())) {
            sink.add(
                &rules::MOE_KEY_TWICE,
                Some(row.line),
                format!("the key of line {}", twin.line),
            );
            continue;
        }
        exact.insert((rest, row.act_type()), row);
        match first.get(&rest) {
            None => _ = first.insert(rest, row),
            Some(other) if ignored => sink.add(
                &rules::MOE_ACTIVATION_SHADOWED,
                Some(row.line),
                format!(
                    "line {} has the same key for {} and comes first; this row is of {}",
                    other.line,
                    other.act_type(),
                    row.act_type()
                ),
            ),
            Some(_) => {}
        }
    }
}

/// Rows whose time equals, digit for digit, that of half the tokens.
fn copies(table: &Table, sink: &mut Sink<'_>) {
    type Series<'a> = (Rest<'a>, &'a str, &'a str);
    let mut at: HashMap<(Series<'_>, u32), &Row> = HashMap::new();
    for row in &table.rows {
        let mut rest = rest(row, true);
        rest.1[1] = 0;
        at.insert(((rest, row.act_type(), &row.tag), row.token), row);
    }
    let mut copied: Vec<(&Row, &Row)> = at
        .iter()
        .filter_map(|((series, token), row)| {
            let half = at.get(&(*series, token / 2)).filter(|_| token % 2 == 0)?;
            let same = row.us[2].is_some_and(|us| us > 0.0) && row.us[2] == half.us[2];
            same.then_some((*row, *half))
        })
        .collect();
    copied.sort_by_key(|(row, _)| row.line);
    for (row, half) in copied {
        sink.add(
            &rules::MOE_TIME_COPIED,
            Some(row.line),
            format!(
                "{} tokens take {} us, as the {} of line {} do",
                row.token,
                row.us[2].unwrap_or_default(),
                half.token,
                half.line
            ),
        );
    }
}

/// Rows with the experts of one rank of expert parallelism, but without those that a look-up with a mask uses.
fn expert_parallel(table: &Table, releases: &[Rules], sink: &mut Sink<'_>) {
    if !releases.iter().all(|rules| rules.drops_expert) {
        return;
    }
    let with_topk = |row: &Row, topk: u32| {
        let mut wanted = rest(row, true);
        wanted.1[5] = topk;
        table.rows.iter().any(|other| rest(other, true) == wanted)
    };
    for row in &table.rows {
        let model = MODELS.iter().find(|(_, hidden, inter, routed, topk)| {
            let shared = row.topk.checked_sub(*topk).filter(|shared| *shared <= 1);
            (row.model_dim, row.inter_dim) == (*hidden, *inter)
                && shared.is_some_and(|shared| {
                    row.expert.checked_sub(shared).is_some_and(|experts| {
                        experts > 0 && experts < *routed && routed.is_multiple_of(experts)
                    })
                })
        });
        if let Some((name, ..)) = model.filter(|_| !with_topk(row, row.topk.saturating_sub(1))) {
            sink.add(
                &rules::MOE_EP_UNREACHABLE,
                Some(row.line),
                format!(
                    "expert={} topk={} is a rank of {name}; with an expert mask topk={} is asked for",
                    row.expert,
                    row.topk,
                    row.topk - 1
                ),
            );
        }
    }
}

fn no_architecture(table: &Table, releases: &[Rules], sink: &mut Sink<'_>) {
    let keyed = releases.iter().all(|rules| rules.keys_gfx);
    let empty = table.rows.iter().all(|row| row.gfx.is_none());
    if keyed && table.has("gfx") && empty && !table.rows.is_empty() {
        sink.add(
            &rules::MOE_GFX_EMPTY,
            Some(1),
            "the column gfx holds nothing in any row",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Report, Severity};
    use crate::table::revision::Revision;

    fn rules_of(
        name: &str,
        bytes: &[u8],
        revision: Option<Revision>,
    ) -> Vec<(&'static str, Option<u64>)> {
        let mut report = Report::default();
        report.check_csv(name, bytes, revision);
        report.sort();
        report
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .map(|finding| (finding.rule, finding.line))
            .collect()
    }

    #[test]
    fn a_row_behind_one_of_another_activation_is_an_error_where_that_row_serves() {
        let text = include_bytes!("rules/examples/moe-activation-shadowed.csv");
        let shadowed = [("moe-activation-shadowed", Some(3))];
        assert_eq!(rules_of("tuned_fmoe.csv", text, None), shadowed);
        assert_eq!(rules_of("tuned_fmoe.csv", text, Some(Revision::P)), []);
    }

    #[test]
    fn a_header_that_was_torn_is_an_error_and_no_table_of_another_kind() {
        let torn =
            b"cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,q_dtype_a\n256,1,71";
        let found = rules_of("model_configs/glm_tuned_fmoe.csv", torn, None);
        assert_eq!(found, [("column-missing", Some(1))]);
    }

    #[test]
    fn the_traps_of_the_vectors_are_found_and_clean_rows_are_not() {
        let traps = include_bytes!("../../../testdata/lookup/aiter-fmoe-traps.csv");
        let found = rules_of("tuned_fmoe.csv", traps, Some(Revision::H));
        let lines = |id: &str| found.iter().filter(|(rule, _)| *rule == id).count();
        // 24, 48 and 100 tokens; two rows of two dtypes and two of an activation; Silu after Gelu and the reverse.
        assert_eq!(lines("moe-token-unreachable"), 3);
        assert_eq!(lines("moe-key-misspelt"), 6);
        assert_eq!(lines("moe-activation-shadowed"), 7);
        // Three tokens each of a kernel without a name and of two one-stage rows without xbf16.
        assert_eq!(lines("kernel-name-unset"), 3);
        assert_eq!(lines("moe-cell-empty"), 6);
        assert_eq!(lines("moe-key-twice"), 0);
        let twice = include_bytes!("../../../testdata/lookup/aiter-fmoe-repeats.csv");
        let found = rules_of("tuned_fmoe.csv", twice, Some(Revision::H));
        assert_eq!(
            found
                .iter()
                .filter(|(rule, _)| *rule == "moe-key-twice")
                .count(),
            4
        );
    }
}
