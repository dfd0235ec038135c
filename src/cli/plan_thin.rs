//! `gemmtune plan --thin`: how many rows of a table have any effect.

use std::collections::BTreeSet;

use camino::Utf8Path;
use serde_json::json;

use super::printer::Printer;
use crate::plan::thin::thin;
use crate::problem::Weight;
use crate::run::error::{Error, ErrorKind};
use crate::table::aiter::{Row, Table};
use crate::table::lookup::{LookupError, Resolver, Rules};

/// The GPU, the rules and the largest M.
pub(super) struct Question<'a> {
    pub(super) rules: Rules,
    pub(super) gfx: &'a str,
    pub(super) cu_num: u32,
    pub(super) max_m: u32,
}

/// Finds the fewest rows of `table` that serve every M with the same kernel, verifies that with a look-up for each M
/// of each weight, and writes them to `output`.
pub(super) fn run(
    table: &Table,
    question: &Question<'_>,
    output: Option<&Utf8Path>,
    printer: &Printer,
) -> Result<(), Error> {
    let unusable = |error: LookupError| {
        Error::to(ErrorKind::Usage, "use the table as the runtime does", error)
            .hint("`gemmtune lint` on the table says what is wrong with it")
    };
    let thinned = thin(
        table,
        question.rules,
        question.gfx,
        question.cu_num,
        question.max_m,
    );
    if thinned.rows == 0 {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "`{}` has no row for {} with {} compute units",
                table.name, question.gfx, question.cu_num
            ),
        )
        .hint("say the device of the rows with --gfx and --cu"));
    }
    let kept = Table {
        rows: thinned
            .needed
            .iter()
            .map(|index| table.rows[*index].clone())
            .collect(),
        faults: Vec::new(),
        ..table.clone()
    };
    let whole = Resolver::new(table, question.rules, question.gfx, question.cu_num);
    let few = Resolver::new(&kept, question.rules, question.gfx, question.cu_num);
    let (asked, differ) = compare(
        table,
        &whole.map_err(unusable)?,
        &few.map_err(unusable)?,
        question,
    );
    if differ > 0 {
        return Err(Error::new(
            ErrorKind::Bug,
            format!("{differ} of {asked} look-ups find another kernel in the thinned table"),
        ));
    }
    if let Some(output) = output {
        super::files::write(output, kept.to_csv().as_bytes(), printer)?;
    }
    if printer.is_json() {
        return printer.json(&json!({
            "table": table.name,
            "op": table.op,
            "gfx": question.gfx,
            "cu_num": question.cu_num,
            "max_m": question.max_m,
            "rows": thinned.rows,
            "needed": thinned.needed.len(),
            "lookups_compared": asked,
            "output": output,
        }));
    }
    printer.say(format!(
        "{} of {} rows serve every M from 1 to {} with the same kernels ({asked} look-ups agree)",
        thinned.needed.len(),
        thinned.rows,
        question.max_m
    ));
    Ok(())
}

/// Looks up every M of every weight that has a row in both tables: returns the number of look-ups, and of those with
/// different kernels.
fn compare(
    table: &Table,
    whole: &Resolver<'_>,
    few: &Resolver<'_>,
    question: &Question<'_>,
) -> (usize, usize) {
    type Kernel<'a> = (Option<&'a str>, Option<&'a str>, Option<i64>);
    fn kernel(row: Option<&Row>) -> Option<Kernel<'_>> {
        row.map(|row| {
            (
                row.libtype.as_deref(),
                row.kernel_name.as_deref(),
                row.split_k,
            )
        })
    }
    let weights: BTreeSet<Weight> = table
        .rows
        .iter()
        .filter(|row| {
            let gfx = row.gfx.as_deref();
            row.cu_num == Some(question.cu_num) && gfx.is_none_or(|gfx| gfx == question.gfx)
        })
        .map(|row| row.shape(table.op).weight())
        .collect();
    let (mut asked, mut differ) = (0, 0);
    for weight in weights {
        let mut shape = weight.with_m(0);
        for m in 1..=question.max_m {
            shape.m = m;
            asked += 1;
            let same = kernel(whole.find(&shape).row()) == kernel(few.find(&shape).row());
            differ += usize::from(!same);
        }
    }
    (asked, differ)
}
