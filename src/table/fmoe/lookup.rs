//! The row that serves a call, as a given release finds it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::defaults;
pub use super::defaults::Default;
use super::rules::{
    ActivationRule, Bypass, FALLBACK_TAG, LOWER_TIER, Release, Rules, TagRule, UPPER_TIER,
};
use super::table::{Row, Table};
use crate::problem::dtype::fp8_of as fp8_dtype;
use crate::problem::op::fused_moe_aiter::Request;
use crate::table::aiter::Text;

/// The machine and process for which rows are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Architecture of the GPU.
    pub gfx: String,
    /// Its compute units.
    pub cu_num: u32,
    /// Whether the package `flydsl` can be imported, without which rows with its kernels are not used.
    pub has_flydsl: bool,
    /// Whether both weights are marked `is_shuffled`, without which rows with Opus kernels are not used.
    pub is_shuffled: bool,
    /// Whether `AITER_BYPASS_TUNE_CONFIG` is set, with which rows are found but not used.
    pub bypasses: bool,
}

impl Site {
    /// A machine that meets the requirements of every row.
    pub fn new(gfx: &str, cu_num: u32) -> Self {
        Self {
            gfx: gfx.to_owned(),
            cu_num,
            has_flydsl: true,
            is_shuffled: true,
            bypasses: false,
        }
    }
}

/// A table that aiter itself rejects: the first call raises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// pandas: `DataFrame index must be unique for orient='index'`.
    #[error(
        "look up in `{table}`: lines {first} and {second} have one key, and aiter {release} raises `ValueError: DataFrame index must be unique` at the first call ({count} such rows)"
    )]
    Repeats {
        /// Name of the table.
        table: String,
        release: &'static str,
        /// 1-based line of the first row.
        first: u64,
        /// 1-based line of the second.
        second: u64,
        /// Rows that repeat a key.
        count: usize,
    },
    /// A line with which pandas rejects the file, or turns a key column into text.
    #[error("look up in `{table}`: line {line}: {what}; no row of the file can be found then")]
    Unreadable {
        /// Name of the table.
        table: String,
        /// 1-based line.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}

/// What a call is served with.
#[derive(Clone, Debug, PartialEq)]
pub enum Served<'table> {
    Row(&'table Row),
    /// aiter's own choice.
    Default(Default),
    /// A row was found, but aiter's own choice runs; the log line looks like a row's without names.
    Bypassed(&'table Row, Default),
    Raises(&'static str),
}

impl<'table> Served<'table> {
    /// The row whose kernels run.
    pub fn row(&self) -> Option<&'table Row> {
        match self {
            Self::Row(row) => Some(row),
            _ => None,
        }
    }
}

/// Why a row that was found is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Its kernels are FlyDSL's, and the package is not installed.
    NoFlydsl,
    /// Its kernels are Opus's, and the weights are not marked as shuffled.
    NotShuffled,
    /// Its kernels are Opus's, and the architecture or the expert mask rules them out.
    OpusElsewhere,
    /// The release does not use rows of block-scaled FP8 for so few tokens, or at all.
    Blockscale,
}

/// The result of a look-up, before any check of the kernels.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<'table> {
    pub served: Served<'table>,
    /// The `token` of the key.
    pub token: u32,
    /// The `topk` of the key.
    pub topk: u32,
    /// A row that was found but is not used, with the reason.
    pub dropped: Option<(&'table Row, Dropped)>,
}

/// A table indexed for one machine, as a server process does.
#[derive(Debug)]
pub struct Resolver<'table> {
    rules: Rules,
    site: Site,
    /// Rows by key including the activation.
    exact: HashMap<Key<'table>, &'table Row>,
    /// The first row of each key without the activation.
    any: HashMap<Key<'table>, &'table Row>,
    /// Rows for machines without FlyDSL: by the whole key, or without the activation, as the release does.
    fallback: HashMap<Key<'table>, &'table Row>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key<'a> {
    gfx: &'a str,
    numbers: [u32; 6],
    texts: [&'a str; 5],
    flags: [bool; 2],
}

/// Replaces the activation in keys where it is not compared.
const ANY: &str = "__ignore__";

impl<'table> Resolver<'table> {
    /// Indexes `table` for calls on `site`.
    pub fn new(table: &'table Table, rules: Rules, site: Site) -> Result<Self, LookupError> {
        if let Some(fault) = table.faults.iter().find(|fault| fault.drops_row) {
            return Err(LookupError::Unreadable {
                table: table.name.clone(),
                line: fault.line,
                what: fault.what.clone(),
            });
        }
        let mut resolver = Self {
            rules,
            site,
            exact: HashMap::new(),
            any: HashMap::new(),
            fallback: HashMap::new(),
        };
        let mut repeats: Vec<(u64, u64)> = Vec::new();
        for row in &table.rows {
            let is_fallback = &*row.tag == FALLBACK_TAG;
            let is_in = match rules.tags {
                TagRule::All => true,
                TagRule::Untagged => row.tag.is_empty(),
                TagRule::NoFallback => !is_fallback,
            };
            let Some(key) = resolver.key_of(row) else {
                continue;
            };
            if is_in {
                match resolver.exact.entry(key.clone()) {
                    Entry::Vacant(vacant) => _ = vacant.insert(row),
                    Entry::Occupied(first) => repeats.push((first.get().line, row.line)),
                }
                resolver.any.entry(without_activation(key)).or_insert(row);
            } else if is_fallback && rules.tags == TagRule::Untagged {
                let key = if rules.activation == ActivationRule::Matched {
                    key
                } else {
                    without_activation(key)
                };
                resolver.fallback.entry(key).or_insert(row);
            }
        }
        if let (true, Some((first, second))) = (rules.repeats_raise, repeats.first()) {
            return Err(LookupError::Repeats {
                table: table.name.clone(),
                release: rules.release.name(),
                first: *first,
                second: *second,
                count: repeats.len(),
            });
        }
        Ok(resolver)
    }

    /// The look-up rules of the release.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// The machine and process it is indexed for.
    pub fn site(&self) -> &Site {
        &self.site
    }

    fn key_of(&self, row: &'table Row) -> Option<Key<'table>> {
        // For unknown compute units the architecture defaults to that of this machine; any other text never equals
        // it.
        let gfx = match (self.rules.keys_gfx, row.gfx.as_deref()) {
            (false, _) => "",
            (true, Some(gfx)) => gfx,
            (true, None) => match row.gfx_or("") {
                "" => "here",
                gfx => gfx,
            },
        };
        let gfx = if gfx == self.site.gfx { "here" } else { gfx };
        Some(Key {
            gfx,
            numbers: row.numbers(),
            texts: [0, 1, 2, 3, 4].map(|at| &*row.texts[at]),
            flags: [row.flags[0]?, row.flags[1]?],
        })
    }

    /// Looks up `request`: the row that serves it, or why none does.
    pub fn find(&self, request: &Request) -> Answer<'table> {
        let token = self.rules.rounding.token(request.tokens);
        let topk = self.rules.topk(request.problem.topk, request.ep);
        let mut found = self.row(request, token, topk);
        let mut dropped = None;
        if let Some((row, why)) =
            found.and_then(|row| Some((row, self.drops(row, request, token)?)))
        {
            dropped = Some((row, why));
            found = match why {
                Dropped::NoFlydsl => self.fallback_row(request, token, topk),
                _ => None,
            };
        }
        let served = match found {
            Some(row) if !self.site.bypasses => self.use_row(row),
            found => {
                let mut problem = request.problem.clone();
                problem.topk = topk;
                let site = &self.site;
                match (
                    defaults::choose(self.rules.release, token, &problem, &site.gfx, site.cu_num),
                    found,
                ) {
                    (None, _) => Served::Raises("KeyError: it has no list for the architecture"),
                    (Some(default), Some(row)) => Served::Bypassed(row, default),
                    (Some(default), None) => Served::Default(default),
                }
            }
        };
        Answer {
            served,
            token,
            topk,
            dropped,
        }
    }

    fn use_row(&self, row: &'table Row) -> Served<'table> {
        // `bool(int(nan))` of an empty cell, evaluated only for one-stage rows.
        let empty = row
            .xbf16
            .as_deref()
            .is_some_and(crate::table::aiter::is_unset);
        if self.rules.reads_xbf16 && row.run_1stage && empty {
            return Served::Raises(
                "ValueError: cannot convert float NaN to integer (xbf16 is empty)",
            );
        }
        Served::Row(row)
    }

    fn row(&self, request: &Request, token: u32, topk: u32) -> Option<&'table Row> {
        let at = |token| {
            let texts = key_texts(request);
            let key = self.key(&texts, request, token, topk);
            let exact = || self.exact.get(&key as &Key<'_>).copied();
            let any = || self.any.get(&without_activation(key.clone())).copied();
            match self.rules.activation {
                ActivationRule::Matched => exact(),
                ActivationRule::MatchedFirst => exact().or_else(any),
                ActivationRule::Ignored => any(),
            }
        };
        at(token).or_else(|| (token == UPPER_TIER).then(|| at(LOWER_TIER)).flatten())
    }

    /// The key under which a request is looked up; `texts` are its [`key_texts`].
    fn key<'a>(
        &self,
        texts: &'a [String; 2],
        request: &'a Request,
        token: u32,
        topk: u32,
    ) -> Key<'a> {
        let problem = &request.problem;
        Key {
            gfx: if self.rules.keys_gfx { "here" } else { "" },
            numbers: [
                self.site.cu_num,
                token,
                problem.model_dim,
                problem.inter_dim,
                problem.expert,
                topk,
            ],
            texts: [
                &texts[0],
                &problem.dtype,
                &problem.q_dtype_a,
                &problem.q_dtype_w,
                &texts[1],
            ],
            flags: [problem.use_g1u1, problem.doweight_stage1],
        }
    }

    fn fallback_row(&self, request: &Request, token: u32, topk: u32) -> Option<&'table Row> {
        let texts = key_texts(request);
        let key = self.key(&texts, request, token, topk);
        let key = if self.rules.activation == ActivationRule::Matched {
            key
        } else {
            without_activation(key)
        };
        self.fallback.get(&key).copied()
    }

    fn drops(&self, row: &Row, request: &Request, token: u32) -> Option<Dropped> {
        let release = self.rules.release;
        let starts = |at: usize, prefix: &str| {
            row.kernels[at]
                .as_deref()
                .is_some_and(|name: &str| name.starts_with(prefix))
        };
        let problem = &request.problem;
        let fp8 = fp8_dtype(&self.site.gfx);
        let bypassed = problem.activation == "Silu"
            && problem.dtype == "torch.bfloat16"
            && problem.q_dtype_a == fp8
            && problem.q_dtype_w == fp8
            && problem.q_type == "per_1x128";
        let small = u64::from(token) * u64::from(problem.topk) <= 128;
        match self.rules.bypass {
            Bypass::All if bypassed => return Some(Dropped::Blockscale),
            Bypass::Small if bypassed && small => return Some(Dropped::Blockscale),
            _ => {}
        }
        if release >= Release::H && (starts(0, "opus_") || starts(1, "opus_")) {
            let known = matches!(problem.activation.as_str(), "Silu" | "Swiglu" | "Situv2");
            if !self.site.is_shuffled {
                return Some(Dropped::NotShuffled);
            }
            if starts(0, "opus_") && !known {
                return Some(Dropped::OpusElsewhere);
            }
        }
        if release >= Release::V17
            && starts(1, "opus_")
            && (self.site.gfx != "gfx950" || request.ep || !starts(1, "opus_moe2_"))
        {
            return Some(Dropped::OpusElsewhere);
        }
        let flydsl = starts(0, "flydsl_") || starts(1, "flydsl_");
        (self.rules.tags == TagRule::Untagged && flydsl && !self.site.has_flydsl)
            .then_some(Dropped::NoFlydsl)
    }
}

fn without_activation(mut key: Key<'_>) -> Key<'_> {
    key.texts[0] = ANY;
    key
}

/// The two texts of a key that a request has without the enumeration's name.
fn key_texts(request: &Request) -> [String; 2] {
    [
        format!("ActivationType.{}", request.problem.activation),
        format!("QuantType.{}", request.problem.q_type),
    ]
}

/// The kernel of a stage; `None` if the cell is empty.
pub fn kernel(row: &Row, stage: usize) -> Option<&Text> {
    row.kernels.get(stage).and_then(Option::as_ref)
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
