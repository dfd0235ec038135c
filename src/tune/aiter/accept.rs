//! Which of the tuner's rows are accepted.
//!
//! Pure. The tuner keeps the lowest time among candidates that passed its numerical check; that lets through times no
//! device can reach, splits of K with irreproducible sums, and rows that are slower than what serves the shape today.

use super::Incumbent;
use crate::problem::op::ERR_RATIO_LIMIT;
use crate::problem::{Op, Shape};
use crate::table::aiter::Row;
use crate::table::kernels::Library;
use crate::table::roofline;

/// What a row needs to be used: the key under which it is looked up, and the libraries that can be called.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) gfx: String,
    pub(super) cu_num: u32,
    /// The libraries that this tree's dispatcher distinguishes, if it looks at them.
    pub(super) libraries: Option<Vec<Library>>,
}

/// Why `row` cannot be deployed for `op`; `None` if it can.
pub(super) fn refusal(op: Op, row: &Row, place: &Place, err_ratio: f64) -> Option<String> {
    match row.us {
        Some(us) if us.is_finite() && us > 0.0 => {}
        Some(us) => return Some(format!("its time is {us} us, which is no time")),
        None => return Some("it has no time".to_owned()),
    }
    match row.err_ratio {
        Some(ratio) if ratio.is_finite() && (0.0..=err_ratio).contains(&ratio) => {}
        Some(ratio) => {
            return Some(format!(
                "{:.1} % of its numbers are wrong, at most {:.1} % may be",
                ratio * 100.0,
                err_ratio * 100.0
            ));
        }
        None => return Some("nothing says that its numbers are right".to_owned()),
    }
    if row.cu_num.is_some_and(|cu_num| cu_num != place.cu_num)
        || row.gfx.as_deref().is_some_and(|gfx| gfx != place.gfx)
    {
        return Some(format!(
            "it was written for {} with {} compute units",
            row.gfx.as_deref().unwrap_or("a device"),
            row.cu_num.unwrap_or(0)
        ));
    }
    let measured_on = Row {
        gfx: Some(place.gfx.as_str().into()),
        cu_num: Some(place.cu_num),
        ..row.clone()
    };
    if let Some(reason) = roofline::impossible(op, &measured_on) {
        return Some(reason);
    }
    let library = row
        .libtype
        .as_deref()
        .and_then(Library::of_libtype)
        .or_else(|| row.kernel_name.as_deref().and_then(Library::of_kernel));
    if let Some(library) = library
        && (!library.serves(op)
            || place
                .libraries
                .as_ref()
                .is_some_and(|known| !known.contains(&library)))
    {
        return Some(format!(
            "this tree's dispatcher of {op} does not call kernels of {}",
            library.name()
        ));
    }
    // The tables' `splitK` is a count for assembly, and an exponent for CK, CK Tile and rows without a name.
    let exponent = row
        .split_k
        .filter(|_| matches!(library, None | Some(Library::Ck | Library::CkTile)));
    let unordered = op.aiter().and_then(|aiter| aiter.unordered_split);
    if let (Some(exponent), Some(from)) = (exponent, unordered)
        && exponent >= from
    {
        return Some(format!(
            "splitK {exponent} adds partial sums in no fixed order: two runs differ (ROCm/aiter#4581)"
        ));
    }
    None
}

/// Whether what serves `shape` today is at least as fast as `row`.
pub(super) fn incumbent_stays(row: &Row, incumbent: Option<&Incumbent>) -> bool {
    match (row.us, incumbent) {
        (Some(us), Some(incumbent)) => incumbent.us.is_finite() && us >= incumbent.us,
        _ => false,
    }
}

/// The row of `shipped` that serves `shape` on the device of `place` today, as an incumbent.
///
/// Only a row for exactly this shape was measured on it; one that serves it by rounding M was measured on another.
pub(super) fn shipped(shipped: &[Row], shape: &Shape, place: &Place) -> Option<Incumbent> {
    let us = shipped
        .iter()
        .filter(|row| is_for(row, shape))
        .filter(|row| row.cu_num.is_none_or(|cu_num| cu_num == place.cu_num))
        .filter(|row| row.gfx.as_deref().is_none_or(|gfx| gfx == place.gfx))
        .filter(|row| row.is_valid(ERR_RATIO_LIMIT))
        .filter_map(|row| row.us)
        .reduce(f64::min)?;
    Some(Incumbent {
        us,
        what: "the row in use".to_owned(),
    })
}

/// Whether `row` is for `shape`, judged by the columns that the tuner's input has.
pub(super) fn is_for(row: &Row, shape: &Shape) -> bool {
    (row.m, row.n, row.k) == (shape.m, shape.n, shape.k)
        && (row.q_dtype_w.is_none()
            || shape.dtype.is_empty()
            || row.q_dtype_w.as_deref() == Some(shape.dtype.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            cu_num: Some(304),
            m: 128,
            n: 4608,
            k: 7168,
            libtype: Some("ck".into()),
            kernel_id: Some(3),
            split_k: Some(0),
            us: Some(30.0),
            kernel_name: Some("a8w8_blockscale_1x128x128_x".into()),
            err_ratio: Some(0.0),
            ..Row::default()
        }
    }

    fn why(op: Op, row: &Row) -> Option<String> {
        why_at(op, row, None)
    }

    fn why_at(op: Op, row: &Row, libraries: Option<Vec<Library>>) -> Option<String> {
        let place = Place {
            gfx: "gfx942".to_owned(),
            cu_num: 304,
            libraries,
        };
        refusal(op, row, &place, 0.05)
    }

    #[test]
    fn rows_that_cannot_be_deployed_are_refused_with_the_reason() {
        assert_eq!(why(Op::Blockscale, &row()), None);
        let with = |change: &dyn Fn(&mut Row)| {
            let mut row = row();
            change(&mut row);
            why(Op::Blockscale, &row).unwrap_or_default()
        };
        let said = [
            with(&|row| row.us = Some(-1.0)),
            with(&|row| row.us = Some(0.0)),
            with(&|row| row.us = Some(f64::INFINITY)),
            with(&|row| row.us = None),
            with(&|row| row.err_ratio = Some(0.06)),
            with(&|row| row.err_ratio = None),
            with(&|row| row.us = Some(1.0)),
            with(&|row| row.split_k = Some(2)),
            with(&|row| row.libtype = Some("asm".into())),
            with(&|row| row.cu_num = Some(80)),
        ];
        insta::assert_snapshot!("refused_rows", said.join("\n"));
        assert_eq!(with(&|row| row.split_k = Some(1)), "");
    }

    #[test]
    fn a_split_of_assembly_is_a_count_and_other_operations_sum_in_float() {
        let mut asm = row();
        asm.libtype = Some("asm".into());
        asm.split_k = Some(4);
        assert_eq!(why(Op::BlockscaleBpreshuffle, &asm), None);
        let tree = Some(vec![Library::Ck, Library::CkTile]);
        let reason = why_at(Op::Bpreshuffle, &asm, tree).unwrap();
        insta::assert_snapshot!(reason, @"this tree's dispatcher of gemm_a8w8_bpreshuffle does not call kernels of asm");
        let mut rowwise = row();
        rowwise.split_k = Some(3);
        rowwise.kernel_name = Some("a8w8_rowwise_256x128".into());
        rowwise.libtype = None;
        assert_eq!(why(Op::A8w8, &rowwise), None);
    }

    #[test]
    fn only_rows_of_the_shape_and_the_device_are_incumbents() {
        let place = Place {
            gfx: "gfx942".to_owned(),
            cu_num: 304,
            libraries: None,
        };
        let shape = row().shape(Op::Blockscale);
        let with = |change: &dyn Fn(&mut Row)| {
            let mut row = row();
            change(&mut row);
            shipped(&[row], &shape, &place).map(|incumbent| incumbent.us)
        };
        assert_eq!(with(&|_| ()), Some(30.0));
        assert_eq!(with(&|row| row.m = 160), None);
        assert_eq!(with(&|row| row.cu_num = Some(80)), None);
        assert_eq!(with(&|row| row.gfx = Some("gfx950".into())), None);
        assert_eq!(with(&|row| row.us = Some(-1.0)), None);
    }

    #[test]
    fn ties_are_the_incumbents() {
        let incumbent = |us| Incumbent {
            us,
            what: "Triton".to_owned(),
        };
        assert!(incumbent_stays(&row(), Some(&incumbent(30.0))));
        assert!(!incumbent_stays(&row(), Some(&incumbent(30.1))));
        assert!(!incumbent_stays(&row(), None));
    }
}
