//! The calls of aiter's fused MoE found in logs.

use serde::Serialize;

use super::super::files;
use super::super::printer::Printer;
use super::{LISTED, ShapesArgs};
use crate::log::LogSummary;
use crate::log::fmoe::Listed;
use crate::run::error::Error;

/// The part of the document about them.
#[derive(Serialize)]
pub(super) struct AiterMoe<'log_summary> {
    /// Parsed keys, with what served them; at most as many as shapes.
    aiter_fused_moe: Vec<Listed<'log_summary>>,
    /// Kernels that a row names and the compiled module lacks.
    aiter_fused_moe_kernels_not_found: Vec<&'log_summary str>,
}

pub(super) fn listed(log_summary: &LogSummary) -> AiterMoe<'_> {
    let moe = &log_summary.fmoe;
    AiterMoe {
        aiter_fused_moe: moe.listed(LISTED),
        aiter_fused_moe_kernels_not_found: moe.not_found.iter().map(String::as_str).collect(),
    }
}

/// Writes the calls if they are requested and there are any; returns whether that is so.
pub(super) fn write(
    log_summary: &LogSummary,
    args: &ShapesArgs,
    printer: &Printer,
) -> Result<bool, Error> {
    let Some(path) = &args.fused_moe else {
        return Ok(false);
    };
    // Records have what log lines lack: tokens before rounding, and how often each call was made.
    let csv = if !log_summary.aiter_moe.is_empty() {
        log_summary.aiter_moe.to_csv()
    } else if !log_summary.fmoe.is_empty() {
        log_summary.fmoe.to_csv()
    } else {
        return Ok(false);
    };
    files::write(path, csv.as_bytes(), printer)?;
    Ok(true)
}

/// Prints what served them, if they were requested, and which kernels are missing.
pub(super) fn tell(log_summary: &LogSummary, args: &ShapesArgs, printer: &Printer) {
    let (moe, recorded) = (&log_summary.fmoe, &log_summary.aiter_moe);
    if let Some(path) = args.fused_moe.as_ref().filter(|_| !recorded.is_empty()) {
        printer.say(format!(
            "aiter's fused MoE: {} calls in {} sizes, written to `{path}`",
            recorded.calls.values().sum::<u64>(),
            recorded.calls.len()
        ));
    } else if let Some(path) = args.fused_moe.as_ref().filter(|_| !moe.is_empty()) {
        let hits = moe.calls().filter(|(_, served)| served.misses == 0).count();
        printer.say(format!(
            "aiter's fused MoE: {} keys, {hits} of them with a row, written to `{path}`",
            moe.calls().count()
        ));
    }
    if let Some(name) = moe.not_found.first() {
        printer.warn(format!(
            "{} kernels that rows of aiter's fused MoE name are not in the module, which ran its own choice though the log names \
             them: {name}",
            moe.not_found.len()
        ));
    }
}
