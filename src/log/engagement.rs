//! aiter's look-up lines: the shape it looked up, and which row of which table it found.
//!
//! The wordings are those of `get_CKGEMM_config`, `get_bpreshuffle_GEMM_config`, `get_GEMM_config_with_quant_type`
//! (`aiter/ops/gemm_op_a8w8.py`) and `get_GEMM_config` (`gemm_op_a4w4.py`) at v0.1.7, v0.1.9, 303a583c and e4048607,
//! and of main after ROCm/aiter#5586. A hit line proves that Python found a row; before e4048607 it does not prove
//! that the compiled module holds that row's kernel.

use super::cursor::{Cursor, lossy, rfind};
use super::plausible;
use crate::problem::Op;
use crate::problem::op::LookupLine;
use crate::table::family::{self, Family};

/// Longest head of a look-up line: `shape is M:…, N:…, K:… dtype='…' otype='…' bias=…, scaleAB=…, bpreshuffle=…`.
const HEAD_MAX: usize = 192;

/// Longest table path or kernel name kept.
const NAME_MAX: usize = 1024;

/// The row a look-up found, as far as the line describes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Hit {
    /// M of the row.
    pub padded_m: u32,
    pub file: String,
    /// Compute units the row is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cu_num: Option<u32>,
    /// Library of the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub libtype: Option<String>,
    /// Name of the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_name: Option<String>,
    /// Number of the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_k: Option<String>,
}

/// Where the look-up line starts that continues at `at`; `None` when it does not start nearby.
pub(super) fn head_start(bytes: &[u8], at: usize) -> Option<usize> {
    let from = at.saturating_sub(HEAD_MAX);
    let before = &bytes[from..at];
    memchr::memrchr_iter(b'M', before).find_map(|m| {
        let head = &before[..m];
        let is_colon = before.get(m + 1) == Some(&b':');
        let text = [b"shape is ".as_slice(), b"shape "]
            .into_iter()
            .find(|text| head.ends_with(text));
        let text = text.filter(|_| is_colon)?;
        Some(from + m - text.len())
    })
}

/// Whether a look-up line whose beginning is lost continues at `at`: `K:7168, ` precedes it, and its line has no word
/// `shape` that would make it another operation's.
pub(super) fn lost_head(bytes: &[u8], at: usize) -> bool {
    let before = &bytes[at.saturating_sub(HEAD_MAX)..at];
    let line = memchr::memrchr2(b'\n', b'\r', before).map_or(0, |end| end + 1);
    let before = &before[line..];
    let Some((head, _)) = before
        .strip_suffix(b", ")
        .and_then(super::cursor::trailing_number)
    else {
        return false;
    };
    head.ends_with(b"K:") && super::cursor::find(before, b"shape").is_none()
}

/// What a complete look-up line reports.
#[derive(Clone, Debug)]
pub(super) enum LookupReport<'log> {
    /// A look-up of one of our operations.
    Lookup(Line<'log>),
    /// A look-up in the tables of another family, by its stem.
    Other(String),
}

/// A look-up that borrows its texts from the log. The operation follows from the form of the line and the name of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'log> {
    pub(super) op: Op,
    pub(super) m: u32,
    pub(super) n: u32,
    pub(super) k: u32,
    pub(super) dtype: Option<&'log [u8]>,
    pub(super) outcome: LineOutcome<'log>,
}

/// What a look-up found: a row, or none, in which case the operation's default kernel runs. v0.1.7 and v0.1.9 do not print the file
/// of a miss for `gemm_a4w4`.
#[derive(Clone, Copy, Debug)]
pub(super) enum LineOutcome<'log> {
    Hit(LineHit<'log>),
    Miss { file: Option<&'log [u8]> },
}

/// A [`Hit`] that borrows its texts from the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct LineHit<'log> {
    padded_m: u32,
    file: &'log [u8],
    cu_num: Option<u32>,
    libtype: Option<&'log [u8]>,
    kernel_name: Option<&'log [u8]>,
    kernel_id: Option<&'log [u8]>,
    split_k: Option<&'log [u8]>,
}

impl LineHit<'_> {
    pub(super) fn to_owned(self) -> Hit {
        let text = |text: Option<&[u8]>| text.map(|text| lossy(text, NAME_MAX));
        Hit {
            padded_m: self.padded_m,
            file: lossy(self.file, NAME_MAX),
            cu_num: self.cu_num,
            libtype: text(self.libtype),
            kernel_name: text(self.kernel_name),
            kernel_id: text(self.kernel_id),
            split_k: text(self.split_k),
        }
    }
}

/// The look-up that `text` starts with, and its length.
pub(super) fn parse(text: &[u8]) -> Option<(LookupReport<'_>, usize)> {
    let mut cursor = Cursor::new(text);
    cursor.eat(b"shape ")?;
    let _ = cursor.eat(b"is ");
    cursor.eat(b"M:")?;
    let m = cursor.number()?;
    cursor.eat(b", N:")?;
    let n = cursor.number()?;
    cursor.eat(b", K:")?;
    let k = cursor.number()?;
    if let Some(family) = other_head(cursor.rest()) {
        let length = text.len() - cursor.rest().len();
        return Some((LookupReport::Other(family.to_owned()), length));
    }
    plausible::m(m).ok()?;
    if n == 0 || k == 0 || n > plausible::MAX_NK || k > plausible::MAX_NK {
        return None;
    }
    // A hit has a blank before the dtype, a miss a comma as well.
    let dtype = (cursor.eat(b" q_dtype_w:").is_some() || cursor.eat(b", q_dtype_w:").is_some())
        .then(|| cursor.run(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_')));
    let (op, outcome) = if cursor.eat(b", not found tuned config, will use").is_some() {
        let op = op_of(b"", form_of_miss(b"", dtype.is_some()), false);
        (op, LineOutcome::Miss { file: None })
    } else if cursor.eat(b", not found tuned config in ").is_some() {
        let file = missed_file(&mut cursor)?;
        let op = op_of(file, form_of_miss(file, dtype.is_some()), false);
        let file = (file != b"CKGEMM or asmGEMM").then_some(file);
        (op, LineOutcome::Miss { file })
    } else if dtype.is_some() && cursor.eat(b" is tuned, in ").is_some() {
        // v0.1.7: no padding, no padded M.
        let (op, hit) = quantised_hit(&mut cursor, m)?;
        (op, LineOutcome::Hit(hit))
    } else {
        cursor.eat(b", found padded_M: ")?;
        let padded_m = cursor.number()?;
        cursor.eat(b", N:")?;
        let same_n = cursor.number()? == n;
        cursor.eat(b", K:")?;
        if !same_n || cursor.number()? != k {
            return None;
        }
        let (op, hit) = if dtype.is_some() {
            cursor.eat(b" is tuned, in ")?;
            quantised_hit(&mut cursor, padded_m)?
        } else {
            plain_hit(&mut cursor, padded_m)?
        };
        (op, LineOutcome::Hit(hit))
    };
    let report = match op {
        Ok(op) => LookupReport::Lookup(Line {
            op,
            m,
            n,
            k,
            dtype,
            outcome,
        }),
        Err(family) => LookupReport::Other(family),
    };
    Some((report, text.len() - cursor.rest().len()))
}

/// The table of a miss, also where the line is cut off right after it, because nothing follows there.
fn missed_file<'log>(cursor: &mut Cursor<'log>) -> Option<&'log [u8]> {
    const END: &[u8] = b", will use default config!";
    if let Some(file) = cursor.until(END) {
        return Some(file);
    }
    let rest = cursor.rest();
    let end = rfind(rest, b".csv")? + b".csv".len();
    let cut_off = END.starts_with(rest[end..].trim_ascii_end());
    // What follows a torn line may end with a table's name as well.
    if !cut_off || rest[..end].contains(&b' ') {
        return None;
    }
    cursor.eat(rest)?;
    Some(&rest[..end])
}

/// The family that the text after M, N and K identifies, for a line that is not one of our look-ups:
/// `aiter/tuned_gemm.py` continues with ` dtype=torch.bfloat16 otype=…`, the F4/F8 assembly GEMM of main with `,
/// b_intype:mxfp8, a_preshuffle:1, …`.
pub(super) fn other_head(rest: &[u8]) -> Option<&'static str> {
    if rest.starts_with(b" dtype=") {
        Some("bf16_tuned_gemm")
    } else if rest.starts_with(b", b_intype:") {
        Some("asm_mxfp8fp4gemm")
    } else {
        None
    }
}

/// The largest row of a weight, which `gemm_a8w8_bpreshuffle` of main after ROCm/aiter#5586 takes for every M above it.
/// The line appears once for each weight, after the miss of the first such M.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reuse {
    pub(super) n: u32,
    pub(super) k: u32,
    /// M of the row.
    pub(super) m: u32,
    pub(super) kernel: String,
}

impl Reuse {
    /// Its effect: a hit of that row, in the table whose look-up missed.
    pub(super) fn hit(&self, file: &str) -> Hit {
        Hit {
            padded_m: self.m,
            file: file.to_owned(),
            cu_num: None,
            libtype: None,
            kernel_name: Some(self.kernel.clone()),
            kernel_id: None,
            split_k: None,
        }
    }
}

/// The reuse whose line continues with `text` after ` is above the tuned table for N:`.
pub(super) fn reuse(text: &[u8]) -> Option<Reuse> {
    let mut cursor = Cursor::new(text);
    let n = cursor.number()?;
    cursor.eat(b", K:")?;
    let k = cursor.number()?;
    cursor.eat(b"; reusing the M:")?;
    let m = cursor.number()?;
    cursor.eat(b" row ")?;
    let kernel = lossy(cursor.rest().trim_ascii_end(), NAME_MAX);
    Some(Reuse { n, k, m, kernel })
}

/// The operation of a table where its name tells it, or the stem of another family.
type OpOrFamily = Result<Op, String>;

fn form_of_miss(file: &[u8], has_dtype: bool) -> LookupLine {
    match (file, has_dtype) {
        (b"CKGEMM or asmGEMM", _) => LookupLine::CkOrAsm,
        (_, true) => LookupLine::Quantised,
        (_, false) => LookupLine::Plain,
    }
}

/// The operation that `file` belongs to. Tables may have any name; aiter's own names tell the family, and another
/// name is attributed to the operation that the line's format is mostly used for.
fn op_of(file: &[u8], form: LookupLine, has_libtype: bool) -> OpOrFamily {
    let named = match std::str::from_utf8(file)
        .ok()
        .and_then(family::of_file_name)
    {
        Some(Family::Other(stem)) => return Err(stem),
        Some(Family::Op(op)) => Some(op),
        // v0.1.7's default for bf16, whose name tells nothing else.
        None if file.ends_with(b"/configs/tuned_gemm.csv") => {
            return Err("bf16_tuned_gemm".to_owned());
        }
        None => None,
    };
    Ok(Op::of_line(form, has_libtype, named))
}

/// ` is tuned on cu_num = <n> in <file> , kernel name is <name>!`, and `gemm_a4w4`'s variant of it.
fn plain_hit<'log>(
    cursor: &mut Cursor<'log>,
    padded_m: u32,
) -> Option<(OpOrFamily, LineHit<'log>)> {
    cursor.eat(b" is tuned on cu_num = ")?;
    let cu_num = Some(cursor.number()?);
    cursor.eat(b" in ")?;
    let before_name = cursor.until(b", kernel name is ")?;
    let file = before_name.strip_suffix(b" ");
    let mut hit = LineHit {
        padded_m,
        file: file.unwrap_or(before_name),
        cu_num,
        libtype: None,
        kernel_name: None,
        kernel_id: None,
        split_k: None,
    };
    // `gemm_a4w4` has no blank before the comma.
    if file.is_none() {
        hit.kernel_name = Some(cursor.until(b", splitK is ")?);
        hit.split_k = Some(cursor.until(b"!")?);
        return Some((op_of(hit.file, LookupLine::CkOrAsm, false), hit));
    }
    hit.kernel_name = Some(cursor.until(b"!")?);
    Some((op_of(hit.file, LookupLine::Plain, false), hit))
}

/// `<file>!`, `<file>, libtype is <lib>!` (v0.1.9), or `<file>!` followed by ` libtype is <lib>!` and ` kernelName is
/// <name> (kernelId <id>)!`.
fn quantised_hit<'log>(
    cursor: &mut Cursor<'log>,
    padded_m: u32,
) -> Option<(OpOrFamily, LineHit<'log>)> {
    let file = cursor.until(b"!")?;
    let split = rfind(file, b", libtype is ");
    let mut hit = LineHit {
        padded_m,
        file: split.map_or(file, |at| &file[..at]),
        cu_num: None,
        libtype: split.map(|at| &file[at + b", libtype is ".len()..]),
        kernel_name: None,
        kernel_id: None,
        split_k: None,
    };
    if cursor.eat(b" libtype is ").is_some() {
        hit.libtype = Some(cursor.until(b"!")?);
    }
    if cursor.eat(b" kernelName is ").is_some() {
        hit.kernel_name = Some(cursor.until(b" (kernelId ")?);
        hit.kernel_id = Some(cursor.until(b")!")?);
    }
    let op = op_of(hit.file, LookupLine::Quantised, hit.libtype.is_some());
    Some((op, hit))
}

#[cfg(test)]
#[path = "engagement_tests.rs"]
pub(crate) mod tests;
