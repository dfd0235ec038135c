//! Rows of aiter's Triton GEMM in `gemmtune plan`.

use camino::Utf8Path;

use super::{BackendArg, Error, ErrorKind, Op, PlanArgs};
use crate::table::aiter_triton::{Configs, FileName};

/// The parsed name, if it is that of a file of this GEMM.
pub(super) fn name_of(file: &Utf8Path) -> Option<FileName> {
    file.file_name()?.parse().ok()
}

/// Whether rows are planned for it: as given, else if a table is one of its files.
pub(super) fn is_planned(args: &PlanArgs, files: &[(FileName, Configs)]) -> Result<bool, Error> {
    let wanted = match args.backend {
        Some(backend) => backend == BackendArg::AiterTriton,
        None => !files.is_empty(),
    };
    if !wanted && !files.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            "a table is a file of aiter's Triton GEMM, which aiter's tuner does not write",
        )
        .hint("plan for it with `--backend aiter-triton`, or leave the file out"));
    }
    let other = args.op.filter(|op| wanted && *op != Op::Blockscale);
    match other {
        Some(op) => Err(Error::new(
            ErrorKind::Usage,
            format!(
                "plan rows of aiter's Triton GEMM for {op}: SGLang calls it for {} alone",
                Op::Blockscale
            ),
        )
        .hint("`--backend aiter` plans for every other operation of aiter's")),
        None => Ok(wanted),
    }
}

/// Remarks on the planned rows.
pub(super) fn notes(args: &PlanArgs, files: &[(FileName, Configs)], gfx: &str) -> Vec<String> {
    let mut notes = vec![
        "a row serves the M between two bounds of its file; of each such bucket the M with most calls is raced, and the row is \
         kept where it holds at both ends: `gemmtune tune --backend aiter-triton`"
            .to_owned(),
    ];
    let others = files.iter().filter(|(name, _)| name.gfx != gfx).count();
    if others > 0 {
        notes.push(format!(
            "{others} files are for other architectures than {gfx}, and serve nothing here"
        ));
    }
    if !args.tables.is_empty() && files.is_empty() {
        notes.push("none of the tables is a file of aiter's Triton GEMM, so every shape counts as not served".to_owned());
    }
    notes
}
