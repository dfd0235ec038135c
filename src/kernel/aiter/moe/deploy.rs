//! One merged table in one new file, and the variable that names it. Nothing is rebuilt: the modules of the fused MoE
//! contain every kernel, and Python requests one by name.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::super::facts::read;
use super::super::tables::plain;
use super::lookups::{Lookups, unusable};
use super::{AiterMoe, rows};
use crate::kernel::gone;
use crate::problem::op::fused_moe_aiter::VARIABLE;
use crate::run::documents::{DeployedMoe, Inspection, TunedMoe};
use crate::run::error::{Error, ErrorKind};
use crate::store::digest::short as digest;
use crate::store::file::write_atomic;
use crate::store::run_dir::RunDir;
use crate::table::fmoe::lookup::Resolver;
use crate::table::fmoe::merge::{self, Merged, Policy};
use crate::table::fmoe::reason;
use crate::table::fmoe::rules::ActivationRule;
use crate::table::fmoe::table::{Row, Table};
use crate::tune::moe::MoeTask;

/// The tuned rows alone, without those in use before: the rows to check for engagement.
const OURS: &str = "tuned-fused-moe.csv";

/// For each row of the previous tables, why it is in the deployed one or not.
const PROVENANCE: &str = "tuned-fused-moe.provenance.csv";

/// The deployment as a shell command, for use after the run; beside that of the dense GEMMs.
const ENVIRONMENT: &str = "fused-moe-env.sh";

/// The activation of the tuned rows (`plan::fused_moe::of_model`).
const ACTIVATION: &str = "Silu";

/// Our rows, followed by those in use, as one table.
pub(super) struct Merging {
    pub(super) csv: String,
    table: Table,
    kept: usize,
    provenance: String,
}

impl Merging {
    /// Puts `ours`, a table as CSV, before the tables in use. For equal keys the first row is used: ours was judged
    /// here.
    pub(super) fn of(lookups: &Lookups, ours: &str) -> Result<Self, Error> {
        let mut tables = vec![("tuned here".to_owned(), ours.as_bytes().to_vec())];
        for path in &lookups.files {
            tables.push((path.to_string(), read(path)?));
        }
        let policy = Policy {
            rules: lookups.rules,
            // A release that does not compare activations would use one activation's kernels for another.
            activation: (lookups.rules.activation == ActivationRule::Ignored)
                .then(|| ACTIVATION.to_owned()),
        };
        let merged: Merged = merge::merge(&tables, &policy).map_err(|error| {
            Error::caused(ErrorKind::Environment, &error)
                .hint("`gemmtune lint` says more about the table")
        })?;
        let table = Table::read("the deployed table", merged.csv.as_bytes())
            .map_err(|error| Error::caused(ErrorKind::Bug, &error))?;
        Ok(Self {
            kept: merged.kept(),
            provenance: merged.provenance_csv(),
            csv: merged.csv,
            table,
        })
    }

    /// Why a look-up of `task` in the merged table does not find `row`; `None` if it does.
    pub(super) fn miss(
        &self,
        lookups: &Lookups,
        task: &MoeTask,
        row: &Row,
    ) -> Result<Option<String>, Error> {
        dry(
            &self.table,
            &lookups.resolver(&self.table)?,
            lookups,
            task,
            row,
        )
    }
}

fn dry(
    table: &Table,
    resolver: &Resolver<'_>,
    lookups: &Lookups,
    task: &MoeTask,
    row: &Row,
) -> Result<Option<String>, Error> {
    let request = lookups
        .request(&task.problem(), task.m)
        .ok_or_else(|| Error::new(ErrorKind::Bug, format!("{task} cannot be looked up")))?;
    let answer = resolver.find(&request);
    let hits = answer
        .served
        .row()
        .is_some_and(|found| rows::same(found, row) && found.act_type() == row.act_type());
    if hits {
        return Ok(None);
    }
    let why = reason::why(table, resolver, &request, &answer);
    Ok(Some(why.unwrap_or_else(|| {
        answer.served.row().map_or_else(
            || "no row serves it".to_owned(),
            |found| format!("line {} serves it", found.line),
        )
    })))
}

impl AiterMoe {
    pub(super) fn put_in_place(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &TunedMoe,
    ) -> Result<DeployedMoe, Error> {
        let trees = self.aiter.trees()?;
        let lookups = Lookups::of(self, &trees, &inspection.gfx, inspection.cu_num)?;
        self.refuse_side_exits()?;
        let ours = rows::csv(tuned.won().map(|row| &row.candidate));
        let merging = Merging::of(&lookups, &ours)?;
        for won in tuned.won() {
            let (task, candidate) = (&won.shape, &won.candidate);
            let row = rows::row(candidate).ok_or_else(|| {
                Error::new(ErrorKind::Bug, format!("the row of {task} cannot be read"))
            })?;
            if let Some(why) = merging.miss(&lookups, task, &row)? {
                return Err(Error::new(
                    ErrorKind::NotBetter,
                    format!("the table of fused MoE is not deployed: a dry look-up of {task} does not find its row: {why}"),
                )
                .hint("the server runs as before; `gemmtune lookup --explain` says the same of a table anywhere"));
            }
        }
        let digest = digest(merging.csv.as_bytes());
        let folder = run.deploy();
        let table = plain(folder.join(format!("tuned_fmoe-{digest}.csv")))?;
        let written = fs_err::create_dir_all(&folder)
            .and_then(|()| write_atomic(&folder.join(OURS), ours.as_bytes()))
            .and_then(|()| write_atomic(&folder.join(PROVENANCE), merging.provenance.as_bytes()))
            .and_then(|()| write_atomic(&table, merging.csv.as_bytes()))
            .and_then(|()| {
                // The path was checked for characters that a shell would interpret.
                let line = format!("export {VARIABLE}={table}\n");
                write_atomic(&folder.join(ENVIRONMENT), line.as_bytes())
            });
        written.map_err(|error| Error::file(&error))?;
        Ok(DeployedMoe {
            env: BTreeMap::from([(VARIABLE.to_owned(), table.to_string())]),
            takes_back: vec![format!(
                "the variable {VARIABLE} and the file {table} it names"
            )],
            digest,
            rows: merging.kept,
            won: tuned.won().count(),
            notes: vec![format!(
                "{VARIABLE} replaces every table of the fused MoE that aiter ships, so the deployed one holds {} rows of those in use; {} says why others are not in it",
                merging.kept - tuned.won().count().min(merging.kept),
                folder.join(PROVENANCE)
            )],
            table,
        })
    }

    /// Refuses variables with which no row of a deployed table would be used, or with which the table would be
    /// modified.
    pub(super) fn refuse_side_exits(&self) -> Result<(), Error> {
        for (name, what) in [
            (
                "AITER_BYPASS_TUNE_CONFIG",
                "makes aiter leave every row of the fused MoE's table, so no deployed one would serve",
            ),
            (
                "AITER_ONLINE_TUNE",
                "has the serving process tune what it misses and write into the deployed table",
            ),
        ] {
            let value = self.aiter.site.variable(name);
            if value.is_some_and(|value| !matches!(value.trim(), "" | "0")) {
                return Err(
                    Error::new(ErrorKind::Environment, format!("{name} {what}")).hint(format!(
                        "unset {name} for both arms, or `backend.fused_moe = \"leave\"`"
                    )),
                );
            }
        }
        Ok(())
    }
}

/// Removes what deploying wrote.
pub(super) fn take_away(deployed: &DeployedMoe) -> Result<(), Error> {
    for file in [
        deployed.table.clone(),
        beside(&deployed.table, OURS),
        beside(&deployed.table, PROVENANCE),
        beside(&deployed.table, ENVIRONMENT),
    ] {
        gone(fs_err::remove_file(file))?;
    }
    Ok(())
}

/// The deployed table, and those of its rows that were tuned.
pub(super) fn deployed(deployed: &DeployedMoe) -> Result<(Table, Vec<Row>), Error> {
    let table = Table::read("the deployed table", &read(&deployed.table)?)
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
    let ours = rows::candidates(&read(&beside(&deployed.table, OURS))?);
    Ok((table, ours.into_iter().map(|(row, _)| row).collect()))
}

fn beside(table: &Utf8Path, name: &str) -> Utf8PathBuf {
    table.with_file_name(name)
}

/// The deployed table, as indexed by a process whose weights are, or are not, marked as shuffled.
pub(super) fn resolver<'t>(
    lookups: &Lookups,
    table: &'t Table,
    is_shuffled: bool,
) -> Result<Resolver<'t>, Error> {
    let mut site = lookups.site.clone();
    site.is_shuffled = is_shuffled;
    Resolver::new(table, lookups.rules, site).map_err(|error| unusable(&error))
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::TABLE;
    use super::*;
    use crate::problem::fused_moe::{MoeProblem, Scales};
    use crate::table::fmoe::rules::Release;

    /// The task that `TABLE` has rows for, at 64 tokens.
    fn task(experts_of_all: Option<u32>) -> MoeTask {
        let problem = MoeProblem {
            experts: 257,
            n: 256,
            hidden: Some(7168),
            topk: Some(9),
            dtype: "fp8_w8a8".to_owned(),
            scales: Scales::Block(128, 128),
            experts_of_all,
        };
        MoeTask::of_aiter(&problem, 64).unwrap()
    }

    /// Places both rows before a table in use with these lines; returns the CSV and what a look-up of the first row
    /// then misses.
    fn placed(release: Release, in_use: &str, task: &MoeTask) -> (String, Option<String>) {
        let keep = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(keep.path().join("tuned_fmoe.csv")).unwrap();
        fs_err::write(&path, in_use).unwrap();
        let lookups = Lookups::on_mi300x(release, vec![path]);
        let merging = Merging::of(&lookups, TABLE).unwrap();
        let (row, _) = rows::candidates(TABLE.as_bytes()).swap_remove(0);
        let miss = merging.miss(&lookups, task, &row).unwrap();
        (merging.csv, miss)
    }

    #[test]
    fn our_row_is_found_whatever_stood_under_its_key_and_the_others_are_carried_along() {
        let gelu = TABLE.replace("Silu", "Gelu").replace(",a,", ",gelu_a,");
        let other = TABLE.lines().nth(1).unwrap().replace("7168", "6144");
        let repeated = TABLE.replace(",a,", ",older,");
        let in_use = format!("{gelu}{}{other}\n", repeated.split_once('\n').unwrap().1);
        for (release, has_gelu) in [(Release::P, true), (Release::H, false)] {
            let (csv, miss) = placed(release, &in_use, &task(None));
            assert_eq!(miss, None, "{release}");
            assert!(!csv.contains("older") && csv.contains(",6144,"), "{csv}");
            // Where activations are not compared, a row of the other one would supply its kernels.
            assert_eq!(csv.contains("Gelu"), has_gelu, "{csv}");
        }
    }

    #[test]
    fn a_row_that_no_look_up_asks_for_under_expert_parallelism_is_missed() {
        let in_use = TABLE.lines().next().unwrap().to_owned() + "\n";
        let (_, miss) = placed(Release::P, &in_use, &task(Some(256)));
        assert_eq!(miss, None, "303a583c asks for the topk there is");
        let (_, miss) = placed(Release::H, &in_use, &task(Some(256)));
        insta::assert_snapshot!(miss.unwrap(), @"with an expert mask aiter v0.1.20 asks for topk=8, one less than topk_ids has columns (it expects a column for masked experts that servers do not add, ROCm/aiter#3999); the rows have topk=9");
    }

    #[test]
    fn a_silu_row_that_stands_behind_a_gelu_row_is_missed() {
        let (row, _) = rows::candidates(TABLE.as_bytes()).swap_remove(0);
        let gelu = TABLE.replace("Silu", "Gelu").replace(",a,", ",gelu_a,");
        let text = gelu + TABLE.split_once('\n').unwrap().1;
        let table = Table::read("shadowed", text.as_bytes()).unwrap();
        let shadowed = |release| {
            let lookups = Lookups::on_mi300x(release, Vec::new());
            let resolver = lookups.resolver(&table).unwrap();
            dry(&table, &resolver, &lookups, &task(None), &row).unwrap()
        };
        assert_eq!(shadowed(Release::P), None);
        insta::assert_snapshot!(shadowed(Release::H).unwrap(), @"the row is of ActivationType.Gelu: aiter v0.1.20 takes the first row in file order whatever its activation; its kernel name may be unknown to the Silu module, which then runs its own choice and says `ck kernel not found`");
    }
}
