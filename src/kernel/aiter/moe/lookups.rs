//! How a server on this machine looks up a fused MoE, and what it finds today.

use std::collections::{BTreeSet, HashSet};

use camino::Utf8PathBuf;

use super::super::facts::{Trees, read};
use super::AiterMoe;
use crate::plan::fused_moe::of_model;
use crate::problem::fused_moe::MoeProblem;
use crate::problem::op::fused_moe_aiter::Request;
use crate::run::error::{Error, ErrorKind};
use crate::table::fmoe::lookup::{LookupError, Resolver, Site};
use crate::table::fmoe::reason;
use crate::table::fmoe::rules::Rules;
use crate::table::fmoe::table::{Row, Table};
use crate::tree::aiter_moe::{self, AiterMoeError};

/// Everything that determines which row a call gets.
#[derive(Debug)]
pub(super) struct Lookups {
    pub(super) rules: Rules,
    pub(super) site: Site,
    /// Files in use, in the order in which aiter merges them.
    pub(super) files: Vec<Utf8PathBuf>,
    /// Their rows as one table; for equal keys, the first.
    today: Table,
    /// Whether the server has its own kernel for few tokens.
    has_small: bool,
}

/// Whether SGLang's own kernel for few tokens handles a call before aiter (`SGLANG_ROCM_SMALLM_MOE`, on by default on
/// gfx950 from SGLang 0.5.21 on): experts of these sizes, up to a number of tokens
/// (`kernels/ops/moe/smallm_moe_gfx950/__init__.py` of 0.5.23, `DIM` and `MAX_TOK_DISPATCH_FP8`).
fn is_small(problem: &MoeProblem, tokens: u32) -> bool {
    const HIDDEN: u32 = 4096;
    const TOPK: [u32; 2] = [10, 11];
    let most = match problem.n {
        256 => 20,
        128 => 48,
        _ => 0,
    };
    problem.hidden == Some(HIDDEN)
        && problem.topk.is_some_and(|topk| TOPK.contains(&topk))
        && problem.experts_of_all.is_none()
        && tokens <= most
}

impl Lookups {
    /// The look-ups of `trees` on a card of `gfx` with `cu_num` compute units.
    pub(super) fn of(moe: &AiterMoe, trees: &Trees, gfx: &str, cu_num: u32) -> Result<Self, Error> {
        let variable = |name: &str| moe.aiter.site.variable(name);
        let rules = Rules::new(aiter_moe::release(&trees.package).map_err(|error| tree(&error))?);
        let before = aiter_moe::tables(&trees.package, variable).map_err(|error| tree(&error))?;
        let site = Site {
            is_shuffled: marks_shuffled(trees),
            ..Site::new(gfx, cu_num)
        };
        let has = |file: &str, text: &str| {
            let text = text.as_bytes();
            fs_err::read(trees.sglang.folder.join(file))
                .is_ok_and(|found| memchr::memmem::find(&found, text).is_some())
        };
        let is_off = variable(SMALL_M).is_some_and(|value| {
            ["0", "false", "no", "off"].contains(&value.to_ascii_lowercase().as_str())
        });
        let has_small = gfx.starts_with("gfx95") && !is_off && has(RUNNER, SMALL_M);
        Ok(Self {
            today: joined(&before.files)?,
            files: before.files,
            rules,
            site,
            has_small,
        })
    }

    /// Look-ups on MI300X, with these files in use.
    #[cfg(test)]
    pub(super) fn on_mi300x(
        release: crate::table::fmoe::rules::Release,
        files: Vec<Utf8PathBuf>,
    ) -> Self {
        Self {
            rules: Rules::new(release),
            site: Site::new("gfx942", 304),
            today: joined(&files).unwrap(),
            files,
            has_small: false,
        }
    }

    /// The call of `problem` with `tokens`; `None` if the sizes are not all known.
    pub(super) fn request(&self, problem: &MoeProblem, tokens: u32) -> Option<Request> {
        Some(Request {
            problem: of_model(problem, &self.site.gfx)?,
            tokens,
            ep: problem.experts_of_all.is_some(),
        })
    }

    /// `table`, as indexed by a process on this machine.
    pub(super) fn resolver<'t>(&self, table: &'t Table) -> Result<Resolver<'t>, Error> {
        Resolver::new(table, self.rules, self.site.clone()).map_err(|error| unusable(&error))
    }

    /// What serves `problem` at these numbers of tokens today, in words.
    pub(super) fn today(
        &self,
        problem: &MoeProblem,
        tokens: impl Iterator<Item = u32>,
    ) -> Result<String, Error> {
        let resolver = self.resolver(&self.today)?;
        let keys: BTreeSet<u32> = tokens
            .map(|tokens| self.rules.rounding.token(tokens))
            .collect();
        let (mut rows, mut odd) = (0, Vec::new());
        for token in &keys {
            let Some(request) = self.request(problem, *token) else {
                continue;
            };
            let answer = resolver.find(&request);
            let hits = answer.served.row().is_some();
            rows += usize::from(hits);
            if let Some(why) = reason::why(&self.today, &resolver, &request, &answer) {
                odd.push((hits, format!("; at M = {token}: {why}")));
            }
        }
        // A row that serves but should not is more informative than a size without a row.
        let odd = odd.into_iter().min_by_key(|(hits, _)| !hits);
        let served = match keys.len() - rows {
            0 => "rows of the tables in use".to_owned(),
            left if rows == 0 => {
                format!("aiter's own choice, for no row serves any of {left} sizes")
            }
            left => format!(
                "rows of the tables in use at {rows} sizes and aiter's own choice at {left}"
            ),
        };
        Ok(served + &odd.map_or_else(String::new, |(_, why)| why))
    }

    /// Why a row for `problem` at `m` tokens is not worth tuning; `None` if it is.
    pub(super) fn left(&self, problem: &MoeProblem, m: u32) -> Option<String> {
        if self.has_small && is_small(problem, m) {
            return Some(format!(
                "SGLang's own kernel for few tokens takes it before aiter ({SMALL_M})"
            ));
        }
        let resolver = self.resolver(&self.today).ok()?;
        let request = self.request(problem, m)?;
        let row = resolver.find(&request).served.row()?;
        // A row that another tier or another activation provides is worth replacing.
        let own = row.token == m
            && row.act_type() == format!("ActivationType.{}", request.problem.activation);
        own.then(|| "a row of the tables in use serves it".to_owned())
    }
}

/// The variable of SGLang's own kernel, and where it is read.
const SMALL_M: &str = "SGLANG_ROCM_SMALLM_MOE";
const RUNNER: &str = "srt/layers/moe/moe_runner/aiter.py";

/// Whether SGLang marks the weights that it shuffles, as Opus kernels require: 0.5.13.post1 and later.
fn marks_shuffled(trees: &Trees) -> bool {
    let file = trees.sglang.folder.join("srt/layers/quantization/fp8.py");
    fs_err::read(file)
        .is_ok_and(|text| memchr::memmem::find(&text, b"w13_weight.is_shuffled").is_some())
}

/// The rows of all files; for equal keys, the first.
fn joined(files: &[Utf8PathBuf]) -> Result<Table, Error> {
    let mut all = Table {
        name: "the tables in use".to_owned(),
        columns: Vec::new(),
        rows: Vec::new(),
        faults: Vec::new(),
        no_final_newline: false,
    };
    let mut seen = HashSet::new();
    for path in files {
        let table = Table::read(path.as_str(), &read(path)?)
            .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
        let columns = table.columns.into_iter();
        all.columns.extend(columns);
        let key = |row: &Row| {
            (
                row.gfx.clone(),
                row.numbers(),
                row.texts.clone(),
                row.flags,
                row.tag.clone(),
            )
        };
        all.rows
            .extend(table.rows.into_iter().filter(|row| seen.insert(key(row))));
    }
    Ok(all)
}

pub(super) fn tree(error: &AiterMoeError) -> Error {
    Error::caused(ErrorKind::Environment, error)
        .hint("`backend.fused_moe = \"leave\"` leaves the fused MoE as it is")
}

pub(super) fn unusable(error: &LookupError) -> Error {
    Error::caused(ErrorKind::Environment, error).hint("`gemmtune lint` says more about the table")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::fused_moe::Scales;

    #[test]
    fn of_all_reasons_the_one_that_tells_most_is_said() {
        use crate::kernel::aiter::moe::rows::tests::TABLE;
        use crate::table::fmoe::rules::Release;

        let keep = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(keep.path().join("tuned_fmoe.csv")).unwrap();
        let problem = |experts_of_all| MoeProblem {
            experts: 257,
            n: 256,
            hidden: Some(7168),
            topk: Some(9),
            dtype: "fp8_w8a8".to_owned(),
            scales: Scales::Block(128, 128),
            experts_of_all,
        };
        let today = |text: &str, experts_of_all| {
            fs_err::write(&path, text).unwrap();
            let lookups = Lookups::on_mi300x(Release::H, vec![path.clone()]);
            let tokens = [1, 2, 64].into_iter();
            lookups.today(&problem(experts_of_all), tokens).unwrap()
        };
        let shadowed = today(&TABLE.replace("Silu", "Gelu"), None);
        let masked = today(TABLE, Some(512));
        let missing = today(TABLE, None);
        let said = [shadowed, masked, missing].join("\n");
        insta::assert_snapshot!(said.replace(path.as_str(), "[table]"), @"
        rows of the tables in use at 1 sizes and aiter's own choice at 2; at M = 64: the row is of ActivationType.Gelu: aiter v0.1.20 takes the first row in file order whatever its activation; its kernel name may be unknown to the Silu module, which then runs its own choice and says `ck kernel not found`
        aiter's own choice, for no row serves any of 3 sizes; at M = 1: with an expert mask aiter v0.1.20 asks for topk=8, one less than topk_ids has columns (it expects a column for masked experts that servers do not add, ROCm/aiter#3999); the rows have topk=9
        rows of the tables in use at 1 sizes and aiter's own choice at 2; at M = 1: no row has token=1; there are 64, 128
        ");
    }

    #[test]
    fn sglangs_own_kernel_takes_the_sizes_it_was_made_for_and_no_others() {
        let problem = MoeProblem {
            experts: 513,
            n: 256,
            hidden: Some(4096),
            topk: Some(11),
            dtype: "fp8_w8a8".to_owned(),
            scales: Scales::Block(128, 128),
            experts_of_all: None,
        };
        let takes = |change: &dyn Fn(&mut MoeProblem), tokens| {
            let mut problem = problem.clone();
            change(&mut problem);
            is_small(&problem, tokens)
        };
        assert!(takes(&|_| (), 16));
        // A row of 32 also serves 21 to 32 tokens, which aiter gets.
        assert!(!takes(&|_| (), 32));
        assert!(takes(&|problem| problem.n = 128, 32));
        assert!(!takes(&|problem| problem.n = 512, 1));
        assert!(!takes(&|problem| problem.topk = Some(8), 1));
        assert!(!takes(&|problem| problem.experts_of_all = Some(512), 1));
    }
}
