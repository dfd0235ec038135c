//! `gemmtune tune --backend aiter --op fused_moe`.

use std::io::IsTerminal as _;

use camino::Utf8Path;

use super::super::printer::Printer;
use super::super::tune_progress::TuneProgress;
use super::{AiterArgs, Common, absolute, failure, kept_env, preview};
use crate::problem::op::fused_moe_aiter::ERR_LIMIT;
use crate::proc::Keeper;
use crate::run::error::{Error, ErrorKind};
use crate::table::fmoe::requests;
use crate::tune::aiter::fmoe::{self, FmoeOrder, FmoeOutcome};

impl AiterArgs {
    /// Runs the tuner of the fused MoE for the calls in `bytes`, the contents of the file `path`.
    pub(in crate::cli) fn run_fused_moe(
        &self,
        common: &Common<'_>,
        path: &Utf8Path,
        bytes: &[u8],
        printer: &Printer,
    ) -> Result<(), Error> {
        let tree = self.tree()?;
        for (given, flag) in [
            (common.table.is_some(), "--table"),
            (self.incumbents.is_some(), "--incumbents"),
            (self.libtype.is_some(), "--libtype"),
            (self.split_k.is_some(), "--split-k"),
        ] {
            if given {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("take `{flag}`: for the fused MoE it means nothing"),
                )
                .hint("`gemmtune plan --shapes CALLS.csv --table T.csv -o OPEN.csv` leaves out calls that a table serves"));
            }
        }
        let calls = requests::read(bytes).map_err(|error| {
            Error::to(ErrorKind::Usage, &format!("read `{path}`"), error).hint(
                "make it with `gemmtune shapes LOG --fused-moe CALLS.csv`, or with `gemmtune plan`",
            )
        })?;
        let keeper = Keeper::this_binary()
            .map_err(|error| Error::to(ErrorKind::Environment, "find this program", error))?;
        let interrupt = super::super::interrupt()?;
        let (env, output) = (kept_env(), absolute(common.output));
        let order = FmoeOrder {
            tree,
            python: Utf8Path::new(common.python),
            env: &env,
            calls: &calls,
            folder: &output,
            budget: common.budget,
            limits: self.limits(ERR_LIMIT),
            batch: self.batch,
            devices: common.devices,
            retry_failed: self.retry_failed,
            keeper: &keeper,
            interrupt: &interrupt,
        };
        if common.dry_run {
            let look = |scratch: &Utf8Path| fmoe::preview(&order, scratch);
            return preview(&output, look, printer);
        }
        let mut progress = TuneProgress::new(printer, std::io::stderr().is_terminal());
        let outcome = fmoe::tune(&order, &mut |event| progress.tell(event));
        progress.finish();
        let outcome = outcome.map_err(|error| failure(error, common.output))?;
        if printer.is_json() {
            printer.json(&outcome)?;
        } else {
            summary(printer, &outcome);
        }
        verdict(&outcome)
    }
}

fn summary(printer: &Printer, outcome: &FmoeOutcome) {
    printer.say(format!(
        "{} rows, {} refused, {} calls failed; {:.0} s",
        outcome.rows.len(),
        outcome.refused.len(),
        outcome.failed.len(),
        outcome.seconds
    ));
    let above = outcome.rows.iter().filter(|row| row.above_default).count();
    if above > 0 {
        printer.warn(format!(
            "{above} of the rows have more wrong numbers than the {:.1} % taken by default, and at most {:.1} %",
            outcome.default_err_ratio * 100.0,
            outcome.err_ratio * 100.0
        ));
    }
    if !outcome.not_reached.is_empty() && !outcome.interrupted {
        printer.warn(format!(
            "{} calls were not reached; run the same command again to go on",
            outcome.not_reached.len()
        ));
    }
    if let Some(path) = outcome.files.first() {
        printer.say(format!(
            "`AITER_CONFIG_FMOE` replaces every table aiter ships: merge `{path}` with them by `gemmtune merge` first"
        ));
    }
}

/// The result of a completed run, which determines the exit code.
fn verdict(outcome: &FmoeOutcome) -> Result<(), Error> {
    if outcome.interrupted {
        return Err(super::super::tune::interrupted(outcome.rows.len()));
    }
    if !outcome.failed.is_empty() {
        return Err(Error::new(
            ErrorKind::TunerFailed,
            format!("{} calls have no row", outcome.failed.len()),
        )
        .hint("their reasons are above, and in `--json` under `failed`; --retry-failed tries them again"));
    }
    Ok(())
}
