//! Why no row serves a call although one looks right: the rows whose keys differ least, and how they differ.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::lookup::{Answer, Dropped, Resolver};
use super::rules::{ActivationRule, FALLBACK_TAG, TagRule};
use super::table::{Row, TEXTS, Table, UNTUNED};
use crate::problem::op::fused_moe_aiter::Request;
use crate::table::reason;

/// Values named in a sentence; more are counted.
const NAMED: usize = 5;

/// Which key parts differ, as a bit set, so that rows can be grouped by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Apart(u16);

/// Names of the parts as sentences use them: the card, then the columns of a tuner's input.
fn parts() -> impl Iterator<Item = &'static str> {
    std::iter::once("card").chain(UNTUNED)
}

/// How strongly a differing part suggests that another row was meant: another model's sizes most, tokens least.
const WEIGHT: [u32; 13] = [2, 1, 9, 8, 3, 2, 2, 3, 2, 2, 6, 6, 6];

impl Apart {
    fn has(self, part: &str) -> bool {
        parts()
            .position(|name| name == part)
            .is_some_and(|at| self.0 & (1 << at) != 0)
    }

    fn is_only(self, parts: &[&str]) -> bool {
        self.0.count_ones() as usize == parts.len() && parts.iter().all(|part| self.has(part))
    }

    fn weight(self) -> u32 {
        (0..WEIGHT.len())
            .filter(|at| self.0 & (1 << at) != 0)
            .map(|at| WEIGHT[at])
            .sum()
    }
}

/// Why no row of `table` serves `request`, for which `resolver` returned `answer`; `None` if a row serves and nothing
/// about it is odd.
pub fn why(
    table: &Table,
    resolver: &Resolver<'_>,
    request: &Request,
    answer: &Answer<'_>,
) -> Option<String> {
    if let Some((row, dropped)) = answer.dropped {
        return Some(dropped_text(row, dropped, resolver));
    }
    if let Some(row) = answer.served.row() {
        return odd_hit(row, resolver, request, answer);
    }
    if let super::lookup::Served::Bypassed(row, _) = &answer.served {
        return Some(format!(
            "line {} has the key, but AITER_BYPASS_TUNE_CONFIG is set",
            row.line
        ));
    }
    if let super::lookup::Served::Raises(what) = &answer.served {
        return Some((*what).to_owned());
    }
    Some(no_row(table, resolver, request, answer))
}

/// A row that serves but is not the one that was meant.
fn odd_hit(
    row: &Row,
    resolver: &Resolver<'_>,
    request: &Request,
    answer: &Answer<'_>,
) -> Option<String> {
    let wanted = format!("ActivationType.{}", request.problem.activation);
    if row.act_type() != wanted {
        return Some(format!(
            "the row is of {}: aiter {} takes the first row in file order whatever its activation; its kernel name may be \
             unknown to the {} module, which then runs its own choice and says `ck kernel not found`",
            row.act_type(),
            resolver.rules().release,
            request.problem.activation
        ));
    }
    (row.token != answer.token).then(|| {
        format!(
            "no row has token={}; that of token={} serves",
            answer.token, row.token
        )
    })
}

fn dropped_text(row: &Row, dropped: Dropped, resolver: &Resolver<'_>) -> String {
    let line = row.line;
    match dropped {
        Dropped::NoFlydsl => format!(
            "line {line} has the key, but its kernels are FlyDSL's and that package is not installed"
        ),
        Dropped::NotShuffled => format!(
            "line {line} has the key, but its kernels are Opus's and need both weights marked `is_shuffled`"
        ),
        Dropped::OpusElsewhere => format!(
            "line {line} has the key, but its kernels are Opus's, which run on gfx950 without an expert mask and for \
             Silu, Swiglu and Situv2 only"
        ),
        Dropped::Blockscale => format!(
            "line {line} has the key, but aiter {} leaves rows of block-scaled FP8 out{}",
            resolver.rules().release,
            match resolver.rules().bypass {
                super::rules::Bypass::All => "",
                _ => " up to 128 tokens times topk",
            }
        ),
    }
}

fn no_row(
    table: &Table,
    resolver: &Resolver<'_>,
    request: &Request,
    answer: &Answer<'_>,
) -> String {
    let mut best: Option<Apart> = None;
    let mut nearest: Vec<&Row> = Vec::new();
    for row in &table.rows {
        let apart = apart(row, resolver, request, answer);
        let better = best.is_none_or(|best| (apart.weight(), apart) < (best.weight(), best));
        if better {
            best = Some(apart);
            nearest.clear();
        }
        if best == Some(apart) {
            nearest.push(row);
        }
    }
    let Some(apart) = best else {
        return "the table has no rows".to_owned();
    };
    let problem = &request.problem;
    let of =
        |cell: fn(&Row) -> u32| list(nearest.iter().map(|row| cell(row)).collect::<BTreeSet<_>>());
    let rules = resolver.rules();
    // Several rows that differ in the same parts are described in one sentence.
    if apart == Apart(0) {
        let tags: BTreeSet<&str> = nearest.iter().map(|row| &*row.tag).collect();
        return format!(
            "rows of this key are tagged {}, and aiter {} {}",
            list(tags),
            rules.release,
            match rules.tags {
                TagRule::Untagged => "serves untagged rows only".to_owned(),
                _ => format!("serves none tagged {FALLBACK_TAG}"),
            }
        );
    }
    let topk_by_ep = request.ep
        && rules.drops_expert
        && nearest.iter().all(|row| row.topk == request.problem.topk);
    if apart.has("topk") && topk_by_ep && !apart.has("expert") && !apart.has("inter_dim") {
        return format!(
            "with an expert mask aiter {} asks for topk={}, one less than topk_ids has columns (it expects a column for masked \
             experts that servers do not add, ROCm/aiter#3999); the rows have topk={}",
            rules.release, answer.topk, request.problem.topk
        );
    }
    let shared = |expert: i64, topk: i64| {
        nearest.iter().all(|row| {
            i64::from(row.expert) == i64::from(problem.expert) + expert
                && i64::from(row.topk) == i64::from(answer.topk) + topk
        })
    };
    if apart.has("expert") && apart.has("topk") && shared(1, 1) {
        return format!(
            "the rows are for {} experts and topk {}: with a fused shared expert, which this call does not have",
            of(|row| row.expert),
            of(|row| row.topk)
        );
    }
    if apart.has("expert") && apart.has("topk") && shared(-1, -1) {
        return format!(
            "the rows are for {} experts and topk {}: without the shared expert that this server fuses",
            of(|row| row.expert),
            of(|row| row.topk)
        );
    }
    if apart.is_only(&["token"]) {
        return no_token(&nearest, request, answer);
    }
    let mut said: Vec<String> = Vec::new();
    if apart.has("card") {
        let cards: BTreeSet<String> = nearest.iter().map(|row| card(row, resolver)).collect();
        said.push(format!("are for {}", list(cards)));
    }
    for (part, cell) in [
        ("model_dim", (|row| row.model_dim) as fn(&Row) -> u32),
        ("inter_dim", |row| row.inter_dim),
        ("topk", |row| row.topk),
        ("token", |row| row.token),
    ] {
        if apart.has(part) {
            said.push(format!("have {part}={}", of(cell)));
        }
    }
    if apart.has("expert") {
        let whole = nearest.iter().all(|row| {
            row.expert > problem.expert && row.expert.is_multiple_of(problem.expert.max(1))
        });
        said.push(format!(
            "have expert={}{}",
            of(|row| row.expert),
            if whole {
                ", all of the model's, where a rank of expert parallelism holds fewer"
            } else {
                ""
            }
        ));
    }
    for (at, part) in TEXTS.iter().enumerate() {
        if apart.has(part) {
            let texts: BTreeSet<&str> = nearest.iter().map(|row| &*row.texts[at]).collect();
            said.push(format!("have {part}={}", list(texts)));
        }
    }
    for (at, part) in ["use_g1u1", "doweight_stage1"].into_iter().enumerate() {
        if apart.has(part) {
            let other =
                nearest[0].flags[at].map_or("neither 0 nor 1", |flag| if flag { "1" } else { "0" });
            said.push(format!("have {part}={other}"));
        }
    }
    format!("the nearest rows {}", said.join(" and "))
}

fn no_token(nearest: &[&Row], request: &Request, answer: &Answer<'_>) -> String {
    let tokens: BTreeSet<u32> = nearest.iter().map(|row| row.token).collect();
    let rounded = if request.tokens == answer.token {
        String::new()
    } else {
        format!(" (what {} tokens round to)", request.tokens)
    };
    let mut text = format!("no row has token={}{rounded}", answer.token);
    if tokens.contains(&request.tokens) {
        let _ = write!(
            text,
            "; that of token={} is never asked for, it is no power of two",
            request.tokens
        );
    } else {
        let _ = write!(text, "; there are {}", list(tokens));
    }
    text
}

fn card(row: &Row, resolver: &Resolver<'_>) -> String {
    if resolver.rules().keys_gfx {
        let gfx = row.gfx_or(&resolver.site().gfx);
        format!("{gfx} with {} compute units", row.cu_num)
    } else {
        format!("{} compute units", row.cu_num)
    }
}

/// The key parts in which `row` differs from the request.
fn apart(row: &Row, resolver: &Resolver<'_>, request: &Request, answer: &Answer<'_>) -> Apart {
    let problem = &request.problem;
    let site = resolver.site();
    let rules = resolver.rules();
    let here = row.cu_num == site.cu_num && (!rules.keys_gfx || row.gfx_or(&site.gfx) == site.gfx);
    let activation = rules.activation != ActivationRule::Matched
        || row.act_type() == format!("ActivationType.{}", problem.activation);
    let equal = [
        here,
        row.token == answer.token,
        row.model_dim == problem.model_dim,
        row.inter_dim == problem.inter_dim,
        row.expert == problem.expert,
        row.topk == answer.topk,
        activation,
        &*row.texts[1] == problem.dtype.as_str(),
        &*row.texts[2] == problem.q_dtype_a.as_str(),
        &*row.texts[3] == problem.q_dtype_w.as_str(),
        row.q_type() == format!("QuantType.{}", problem.q_type),
        row.flags[0] == Some(problem.use_g1u1),
        row.flags[1] == Some(problem.doweight_stage1),
    ];
    let mut bits = 0;
    for (at, equal) in equal.into_iter().enumerate() {
        bits |= u16::from(!equal) << at;
    }
    Apart(bits)
}

fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    reason::list(values, NAMED)
}

#[cfg(test)]
mod tests {
    use super::super::lookup::Site;
    use super::super::rules::{Release, Rules};
    use super::*;
    use crate::problem::op::fused_moe_aiter::Problem;

    const TRAPS: &[u8] = include_bytes!("../../../testdata/lookup/aiter-fmoe-traps.csv");

    fn problem(model_dim: u32, inter_dim: u32, expert: u32, topk: u32) -> Problem {
        Problem {
            model_dim,
            inter_dim,
            expert,
            topk,
            activation: "Silu".to_owned(),
            dtype: "torch.bfloat16".to_owned(),
            q_dtype_a: "torch.float8_e4m3fnuz".to_owned(),
            q_dtype_w: "torch.float8_e4m3fnuz".to_owned(),
            q_type: "per_1x128".to_owned(),
            use_g1u1: true,
            doweight_stage1: false,
        }
    }

    fn why_at(release: Release, tokens: u32, problem: Problem, ep: bool) -> Option<String> {
        let table = Table::read("traps.csv", TRAPS).unwrap();
        let resolver =
            Resolver::new(&table, Rules::new(release), Site::new("gfx942", 304)).unwrap();
        let request = Request {
            problem,
            tokens,
            ep,
        };
        let answer = resolver.find(&request);
        why(&table, &resolver, &request, &answer)
    }

    #[test]
    fn a_row_that_looks_right_and_is_not_found_has_its_reason() {
        let at = |tokens, sizes: (u32, u32, u32, u32), ep| {
            why_at(
                Release::H,
                tokens,
                problem(sizes.0, sizes.1, sizes.2, sizes.3),
                ep,
            )
            .unwrap()
        };
        // What 24 tokens round to has a row in one table of the fixture only.
        let said = [
            at(70, (4096, 1536, 16, 8), false),
            at(100, (7168, 256, 256, 8), false),
            at(64, (4096, 1536, 16, 8), true),
            at(8, (7168, 128, 256, 8), false),
            at(8, (7168, 192, 257, 9), false),
            at(8, (7168, 512, 256, 8), false),
            at(8, (7168, 896, 256, 8), false),
            at(8, (7168, 1024, 256, 8), false),
            at(64, (7168, 512, 32, 8), false),
            at(64, (5120, 1536, 160, 8), false),
        ];
        insta::assert_snapshot!(said.join("\n"), @"
        no row has token=128 (what 70 tokens round to); there are 4, 64, 256
        no row has token=128 (what 100 tokens round to); that of token=100 is never asked for, it is no power of two
        with an expert mask aiter v0.1.20 asks for topk=7, one less than topk_ids has columns (it expects a column for masked experts that servers do not add, ROCm/aiter#3999); the rows have topk=8
        the rows are for 257 experts and topk 9: with a fused shared expert, which this call does not have
        the rows are for 256 experts and topk 8: without the shared expert that this server fuses
        the nearest rows are for gfx942 with 80 compute units
        the nearest rows are for gfx950 with 304 compute units
        the nearest rows have q_dtype_a=dtypes.fp8 and have q_dtype_w=dtypes.fp8
        the nearest rows are for gfx942 with 80 compute units and have expert=256, all of the model's, where a rank of expert parallelism holds fewer
        the nearest rows have use_g1u1=0
        ");
    }

    #[test]
    fn a_row_of_another_activation_is_told_of_though_it_serves() {
        let shadowed = why_at(Release::H, 8, problem(6144, 256, 257, 9), false).unwrap();
        insta::assert_snapshot!(shadowed, @"the row is of ActivationType.Gelu: aiter v0.1.20 takes the first row in file order whatever its activation; its kernel name may be unknown to the Silu module, which then runs its own choice and says `ck kernel not found`");
        assert_eq!(
            why_at(Release::P, 8, problem(6144, 256, 257, 9), false),
            None
        );
        let other = why_at(Release::P, 8, problem(6144, 1024, 257, 9), false).unwrap();
        insta::assert_snapshot!(other, @"the nearest rows have act_type=ActivationType.Gelu");
        let few = why_at(Release::V12, 4, problem(7168, 256, 256, 8), false).unwrap();
        insta::assert_snapshot!(few, @"line 4 has the key, but aiter v0.1.12 leaves rows of block-scaled FP8 out up to 128 tokens times topk");
    }
}
