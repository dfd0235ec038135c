//! Rules about a single row.

use super::super::aiter::{Row, Table};
use super::super::kernels::{self, Library};
use super::super::outcome::{self, Runs};
use super::super::revision::{self, Revision};
use super::super::roofline::{self, Device};
use super::{Sink, rules};
use crate::problem::Op;

/// Largest error ratio that a tuner of GEMMs accepts: `--errRatio` of every aiter GEMM tuner.
pub(super) use crate::problem::op::ERR_RATIO_LIMIT;
/// Relative tolerance between a derived column and its value recomputed from `us`, which has four digits.
const DERIVED_SLACK: f64 = 0.005;
/// Absolute tolerance: the columns have two digits.
const DERIVED_STEP: f64 = 0.011;
/// Largest split exponent that aiter's CK entry points accept (`splitK` outside 0..30 is an error at e4048607a5).
const SPLIT_K_MOST: i64 = 30;

/// A rule about one row of a table.
pub(super) type RowRule = fn(&Table, &Row, &mut Sink<'_>);

pub(super) const RULES: [RowRule; 15] = [
    time,
    error_ratio,
    libtype_set,
    libtype_supported,
    kernel_named,
    kernel_of_library,
    kernel_of_operation,
    kernel_of_id,
    kernel_spelling,
    numbers_set,
    split_k,
    roofline,
    derived,
    reachable,
    likely,
];

fn time(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    if !table.has_column("us") {
        return; // reported once, for the header
    }
    let shown = match (row.us, row.extra("us")) {
        (Some(us), _) if us.is_finite() && us > 0.0 => return,
        (Some(us), _) => format!("us is {us}"),
        (None, Some(text)) => format!("us is `{text}`"),
        (None, None) => "us is empty".to_owned(),
    };
    sink.add(&rules::US_INVALID, Some(row.line), shown);
}

fn error_ratio(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    let shown = match (row.err_ratio, row.extra("errRatio")) {
        (Some(ratio), _) if (0.0..=ERR_RATIO_LIMIT).contains(&ratio) => return,
        (Some(ratio), _) => format!("errRatio is {ratio}, the limit {ERR_RATIO_LIMIT}"),
        (None, Some(text)) => format!("errRatio is `{text}`"),
        (None, None) if table.has_column("errRatio") => "errRatio is empty".to_owned(),
        (None, None) => return,
    };
    sink.add(&rules::ERR_RATIO_HIGH, Some(row.line), shown);
}

fn libtype_set(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    if !table.has_column("libtype") {
        return;
    }
    match row.libtype.as_deref() {
        None => {
            let text = row.extra("libtype").unwrap_or("");
            sink.add(
                &rules::LIBTYPE_UNSET,
                Some(row.line),
                format!("libtype is `{text}`"),
            );
        }
        // aiter's merge fills a missing column with the integer 0.
        Some("0" | "0.0") => {
            sink.add(
                &rules::LIBTYPE_UNSET,
                Some(row.line),
                "libtype is `0`, what a merge fills in",
            );
        }
        Some(_) => {}
    }
}

fn libtype_supported(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    let Some(libtype) = row
        .libtype
        .as_deref()
        .filter(|text| !matches!(*text, "0" | "0.0"))
    else {
        return;
    };
    if !is_amd(row) {
        return; // the reference engine's tables have libraries of their own
    }
    let supported = Library::of_libtype(libtype).is_some_and(|library| library.serves(table.op));
    if !supported {
        sink.add(
            &rules::LIBTYPE_UNSUPPORTED,
            Some(row.line),
            format!("{} has no kernels of library `{libtype}`", table.op),
        );
        return;
    }
    // Rows for INT8 weights belong to another function, `gemm_a8w8_ASM`.
    if row.q_dtype_w.as_deref() == Some("torch.int8") {
        return;
    }
    dispatched(table, row, libtype, sink);
}

/// What the dispatchers do with the library, at every revision that may read the row.
fn dispatched(table: &Table, row: &Row, libtype: &str, sink: &mut Sink<'_>) {
    let gfx = row
        .gfx
        .as_deref()
        .or_else(|| roofline::gfx_of_cu_num(row.cu_num?))
        .unwrap_or("gfx942");
    if !is_arch(gfx) {
        return; // no look-up reaches it
    }
    // Everything else that is wrong with the row has its own rule.
    let sound = Row {
        libtype: row.libtype.clone(),
        split_k: Some(0),
        kernel_name: Some("sound".into()),
        ..Row::default()
    };
    let lost: Vec<(Revision, Runs)> = sink
        .revisions
        .iter()
        .map(|revision| (*revision, outcome::of_row(table, *revision, gfx, &sound)))
        .filter(|(_, then)| matches!(then, Runs::Raises(_) | Runs::Ignored(_)))
        .collect();
    let Some((first, then)) = lost.first() else {
        return;
    };
    if lost.len() == sink.revisions.len() {
        sink.add(
            &rules::LIBTYPE_UNSUPPORTED,
            Some(row.line),
            format!(
                "{} with library `{libtype}` on {gfx} ends in {}",
                table.op,
                then.text()
            ),
        );
        return;
    }
    let at: Vec<&str> = lost.iter().map(|(revision, _)| revision.name()).collect();
    let message = format!(
        "library `{libtype}` at {}: {} (--revision {} says that another aiter is to run the table)",
        at.join(", "),
        then.text(),
        Revision::TODAY
            .iter()
            .find(|revision| *revision != first)
            .map_or('N', |revision| revision.letter()),
    );
    sink.add(&rules::LIBTYPE_BY_REVISION, Some(row.line), message);
}

fn kernel_named(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    if table.has_column("kernelName") && row.kernel_name.is_none() {
        let text = row.extra("kernelName").unwrap_or("");
        sink.add(
            &rules::KERNEL_NAME_UNSET,
            Some(row.line),
            format!("kernelName is `{text}`"),
        );
    }
}

fn kernel_of_library(_: &Table, row: &Row, sink: &mut Sink<'_>) {
    let (Some(libtype), Some(name)) = (row.libtype.as_deref(), row.kernel_name.as_deref()) else {
        return;
    };
    let (Some(claimed), Some(named)) = (Library::of_libtype(libtype), Library::of_kernel(name))
    else {
        return;
    };
    if claimed != named {
        sink.add(
            &rules::KERNEL_CONTRADICTS_LIBTYPE,
            Some(row.line),
            format!(
                "libtype is `{libtype}`, but `{name}` is a kernel of `{}`",
                named.name()
            ),
        );
    }
}

fn kernel_of_operation(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    let Some(name) = row.kernel_name.as_deref() else {
        return;
    };
    if let Some(op) = Op::of_kernel_name(name).filter(|op| *op != table.op) {
        sink.add(
            &rules::KERNEL_OF_OTHER_OP,
            Some(row.line),
            format!(
                "`{name}` is a kernel of {op}, the table is for {}",
                table.op
            ),
        );
    }
}

fn kernel_of_id(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    let (Some(id), Some(name)) = (row.kernel_id, row.kernel_name.as_deref()) else {
        return;
    };
    // A name of another library or operation has its own rule.
    let named_ck = Library::of_kernel(name).is_none_or(|library| library == Library::Ck);
    let same_op = Op::of_kernel_name(name).is_none_or(|op| op == table.op);
    if row_library(row) != Some(Library::Ck) || !named_ck || !same_op {
        return;
    }
    let count = kernels::ck_count(table.op);
    let message = match (
        kernels::ck_name(table.op, id),
        kernels::ck_id(table.op, name),
    ) {
        (Some(known), _) if kernels::is_spelling_of(table.op, name, known) => return,
        (None, _) => format!(
            "kernelId is {id}, {} has CK kernels 0 to {}",
            table.op,
            count.saturating_sub(1)
        ),
        (Some(_), Some(other)) => format!("kernelId is {id}, but `{name}` is kernel {other}"),
        (Some(known), None) => format!("kernelId {id} is `{known}`, the row says `{name}`"),
    };
    sink.add(&rules::KERNEL_CONTRADICTS_ID, Some(row.line), message);
}

fn kernel_spelling(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    let Some(name) = row.kernel_name.as_deref() else {
        return;
    };
    if kernels::is_old_spelling(table.op, name) {
        let id = kernels::ck_id(table.op, name);
        let today = id
            .and_then(|id| kernels::ck_name(table.op, id))
            .unwrap_or_default();
        sink.add(
            &rules::KERNEL_NAME_OLD,
            Some(row.line),
            format!("`{name}` is called `{today}` after v0.1.9"),
        );
    }
}

fn numbers_set(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    for (column, number) in [("kernelId", row.kernel_id), ("splitK", row.split_k)] {
        let unreadable = row
            .extra(column)
            .is_some_and(|text| !super::super::aiter::is_unset(text));
        if table.has_column(column) && number.is_none() && !unreadable {
            sink.add(
                &rules::CELL_NOT_A_NUMBER,
                Some(row.line),
                format!("{column} is empty"),
            );
        }
    }
}

fn split_k(_: &Table, row: &Row, sink: &mut Sink<'_>) {
    let Some(split) = row.split_k else { return };
    let most = match row_library(row) {
        Some(Library::Ck | Library::CkTile) => SPLIT_K_MOST,
        _ => i64::MAX,
    };
    if !(0..=most).contains(&split) {
        sink.add(
            &rules::SPLIT_K_RANGE,
            Some(row.line),
            format!("splitK is {split}"),
        );
    }
}

fn roofline(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    if let Some(message) = roofline::impossible(table.op, row) {
        sink.add(&rules::ABOVE_ROOFLINE, Some(row.line), message);
        return;
    }
    let Some(us) = row.us.filter(|us| us.is_finite() && *us > 0.0) else {
        return;
    };
    let Some(device) = Device::of_row(row) else {
        return;
    };
    let moved = roofline::bandwidth(table.op, row.m, row.n, row.k, us);
    if moved * 1e9 > device.memory_most {
        let most = device.memory_most / 1e9;
        sink.add(
            &rules::ABOVE_MEMORY,
            Some(row.line),
            format!("{us} us means {moved:.0} GB/s, more than the {most:.0} of memory"),
        );
    }
}

/// How a recorded figure relates to the one computed from the row's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Derived {
    /// It is equal, or nothing was recorded.
    Agrees,
    /// It is equal in a unit larger by this factor.
    InUnit(f64),
    /// It differs.
    Contradicts,
}

/// Ratios of other units to the expected one that occur in tables, or could: TB for GB, MB for GB.
const UNITS: [f64; 2] = [1e3, 1e-3];

fn relation(cell: Option<f64>, value: f64) -> Derived {
    // A 0 means "not recorded"; `csv_columns::evidence` reports that for the column.
    let Some(cell) = cell.filter(|cell| *cell != 0.0) else {
        return Derived::Agrees;
    };
    let near = |cell: f64, step: f64| {
        (cell - value).abs() <= DERIVED_SLACK * cell.abs().max(value.abs()) + step
    };
    if near(cell, DERIVED_STEP) {
        return Derived::Agrees;
    }
    // With fewer than two digits nothing can be concluded.
    let unit = UNITS
        .into_iter()
        .find(|unit| cell > 0.02 && near(cell * unit, 0.5 * DERIVED_STEP * unit));
    unit.map_or(Derived::Contradicts, Derived::InUnit)
}

/// How the recorded tflops and bw of `row` relate to its time.
pub(super) fn derived_of(table: &Table, row: &Row) -> (Derived, Derived) {
    let Some(us) = row.us.filter(|us| us.is_finite() && *us > 0.0) else {
        return (Derived::Agrees, Derived::Agrees);
    };
    let (m, n, k) = (row.m, row.n, row.k);
    let tflops = relation(row.tflops, roofline::tflops(m, n, k, us));
    let bw = relation(row.bw, roofline::bandwidth(table.op, m, n, k, us));
    match (tflops, bw) {
        // A factor common to both belongs to the time.
        (Derived::InUnit(one), Derived::InUnit(other)) if one.to_bits() == other.to_bits() => {
            (Derived::Contradicts, Derived::Contradicts)
        }
        both => both,
    }
}

fn derived(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    let (tflops, bw) = derived_of(table, row);
    let Some(us) = row.us else { return };
    let (m, n, k) = (row.m, row.n, row.k);
    if let (Derived::Contradicts, Some(cell)) = (tflops, row.tflops) {
        let value = roofline::tflops(m, n, k, us);
        sink.add(
            &rules::TFLOPS_CONTRADICTS_US,
            Some(row.line),
            format!("tflops is {cell}, but 2*{m}*{n}*{k} in {us} us is {value:.2}"),
        );
    }
    if let (Derived::Contradicts, Some(cell)) = (bw, row.bw) {
        let value = roofline::bandwidth(table.op, m, n, k, us);
        sink.add(
            &rules::BW_CONTRADICTS_US,
            Some(row.line),
            format!("bw is {cell}, but the inputs and the output in {us} us are {value:.2} GB/s"),
        );
    }
}

fn reachable(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    let mut unreachable =
        |message: String| sink.add(&rules::ROW_UNREACHABLE, Some(row.line), message);
    for (column, size) in [("M", row.m), ("N", row.n), ("K", row.k)] {
        if size == 0 {
            unreachable(format!("{column} is 0; no GEMM has that"));
        }
    }
    if table.has_column("gfx") {
        match row.gfx.as_deref() {
            None => unreachable("gfx is empty; a look-up asks for the GPU's own".to_owned()),
            Some(gfx) if !is_arch(gfx) => {
                unreachable(format!("gfx `{gfx}` is no architecture with FP8"));
            }
            Some(_) => {}
        }
    }
    if revision::has_weight_dtype(table.op, Revision::H)
        && table.has_column("q_dtype_w")
        && let Some(message) = dtype_of_no_gpu(row)
    {
        unreachable(message);
    }
    if let (Some(gfx), Some(cu_num)) = (row.gfx.as_deref(), row.cu_num) {
        compute_units_exist(gfx, cu_num, row.line, sink);
    }
}

/// Sizes that no weight of a shipped table has: of 180,000 rows in seven aiter trees none has N below 16, and none of
/// a block-scaled operation a K that is not a multiple of 128.
fn likely(table: &Table, row: &Row, sink: &mut Sink<'_>) {
    const LEAST_N: u32 = 16;
    if row.n == 0 || row.k == 0 || !is_amd(row) {
        return;
    }
    if row.n < LEAST_N {
        sink.add(
            &rules::SIZE_UNLIKELY,
            Some(row.line),
            format!("N is {}: are the columns M and N swapped?", row.n),
        );
    }
    if let Some(block) = table
        .op
        .facts()
        .scale_block
        .filter(|block| !row.k.is_multiple_of(*block))
    {
        sink.add(
            &rules::SIZE_UNLIKELY,
            Some(row.line),
            format!("K is {}, no multiple of the scale block {block}", row.k),
        );
    }
}

fn compute_units_exist(gfx: &str, cu_num: u32, line: u64, sink: &mut Sink<'_>) {
    if WHOLE_PARTS
        .iter()
        .any(|(arch, counts)| *arch != gfx && counts.contains(&cu_num))
        && compute_units(gfx).is_some_and(|counts| !counts.contains(&cu_num))
    {
        sink.add(
            &rules::ROW_UNREACHABLE,
            Some(line),
            format!("parts with {cu_num} compute units are of another architecture than {gfx}"),
        );
    } else if compute_units(gfx).is_some_and(|counts| !counts.contains(&cu_num)) {
        sink.add(
            &rules::CU_NUM_UNKNOWN,
            Some(line),
            format!("no {gfx} part or partition with {cu_num} compute units is known"),
        );
    }
}

/// FP8 weights have one dtype per architecture (`aiter/utility/dtypes.py`): the FNUZ one on gfx942 only.
fn dtype_of_no_gpu(row: &Row) -> Option<String> {
    let gfx = row
        .gfx
        .as_deref()
        .or_else(|| row.cu_num.and_then(roofline::gfx_of_cu_num));
    match (row.q_dtype_w.as_deref(), gfx) {
        (None, _) => Some("q_dtype_w is empty; a look-up asks for the weight's own".to_owned()),
        (Some(dtype), _) if !dtype.starts_with("torch.") => Some(format!(
            "q_dtype_w `{dtype}` is not spelled as torch prints a dtype"
        )),
        (Some("torch.float8_e4m3fn"), Some(gfx @ ("gfx940" | "gfx941" | "gfx942"))) => Some(
            format!("{gfx} has torch.float8_e4m3fnuz weights, the row torch.float8_e4m3fn"),
        ),
        (Some("torch.float8_e4m3fnuz"), Some(gfx))
            if gfx.starts_with("gfx95") || gfx.starts_with("gfx12") =>
        {
            Some(format!(
                "{gfx} has torch.float8_e4m3fn weights, the row torch.float8_e4m3fnuz"
            ))
        }
        _ => None,
    }
}

/// Compute units of whole parts that no part of another architecture has.
const WHOLE_PARTS: [(&str, &[u32]); 2] = [("gfx942", &[304, 228, 80]), ("gfx950", &[256])];

/// Compute units of the parts of an architecture, whole or partitioned (2, 4 and 8 ways).
fn compute_units(gfx: &str) -> Option<&'static [u32]> {
    match gfx {
        // MI300X/MI325X 304, MI300A 228, MI308X 80.
        "gfx942" => Some(&[304, 152, 76, 38, 228, 114, 57, 80, 40, 20, 10, 64]),
        // MI350X/MI355X 256, MI350P 128.
        "gfx950" => Some(&[256, 128, 64, 32]),
        _ => None,
    }
}

/// Whether a GPU of this name can run FP8 GEMMs: the older CDNA and RDNA parts have no FP8 at all.
fn is_arch(gfx: &str) -> bool {
    match gfx.strip_prefix("gfx") {
        Some("900" | "906" | "908" | "90a") => false,
        Some(digits) if digits.starts_with("10") && digits.len() == 4 => false,
        Some(digits) => {
            (3..=4).contains(&digits.len())
                && digits
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        }
        // For the reference engine it is the instruction set.
        None => matches!(gfx, "avx512" | "avx2" | "portable" | "neon"),
    }
}

fn is_amd(row: &Row) -> bool {
    row.gfx.as_deref().is_none_or(|gfx| gfx.starts_with("gfx"))
}

/// The library of a row's kernel: its libtype, or in older tables derived from its name.
fn row_library(row: &Row) -> Option<Library> {
    match row.libtype.as_deref() {
        Some(libtype) => Library::of_libtype(libtype),
        None => row.kernel_name.as_deref().and_then(Library::of_kernel),
    }
}
