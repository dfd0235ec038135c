//! Whether the kernels that ran are those of the table.
//!
//! A look-up that logs "is tuned" tells what the table contains, not what ran: a module built from another table runs
//! its default kernel, with the same log line and correct numbers. What ran can be seen in the process: by the names
//! of the kernels that its device executed, and by their times.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::found::KernelTime;

/// By how much all times may deviate by one common factor and still be attributed to the device's clock: a power cap
/// or a warmer device affects every kernel alike. Our choice; a default kernel within that range costs no more than
/// that.
const CLOCK: f64 = 0.10;

/// A tuned row, and how it ran in a fresh process.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The kernel that the table names.
    pub row: &'a str,
    pub time: &'a KernelTime,
    /// Whether the runtime requests the kernel from its module by name, and so stops if it is not there.
    pub by_name: bool,
}

/// The conclusion about the kernels that ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "because")]
pub enum Ran {
    /// Tuned kernels take as long as they did while tuning.
    #[default]
    Tuned,
    /// None does, but for this reason that does not count against them.
    Explained(String),
    /// Kernels other than the table's.
    Other(String),
}

/// Judges the tuned rows by how they ran.
pub fn judge(seen: &[Seen<'_>]) -> Ran {
    let timed: Vec<&Seen<'_>> = seen
        .iter()
        .filter(|seen| seen.time.us.is_some() && seen.time.clock == "device")
        .collect();
    let Some(first) = timed.first() else {
        return if seen.is_empty() {
            Ran::Tuned
        } else {
            Ran::Explained("no kernel was timed by its device".to_owned())
        };
    };
    if let Some(why) = one_for_several(&timed) {
        return Ran::Other(why);
    }
    if timed.iter().any(|seen| seen.time.agrees()) {
        return Ran::Tuned;
    }
    if timed.iter().all(|seen| seen.by_name) {
        return Ran::Explained("each kernel is asked for by name".to_owned());
    }
    if each_its_own(&timed) {
        return Ran::Explained("rows of different kernels ran different kernels".to_owned());
    }
    if let Some(factor) = common_factor(&timed) {
        return Ran::Explained(format!(
            "all times are off by one factor, {factor:.2}, as by another clock"
        ));
    }
    Ran::Other(format!(
        "none of the {} tuned kernels that were timed takes the time it was tuned at, first {}: {:.1} us instead of {:.1} us{}",
        timed.len(),
        first.time.shape,
        first.time.us.unwrap_or_default(),
        first.time.tuned_us,
        first
            .time
            .kernel
            .as_deref()
            .map_or_else(String::new, |kernel| format!(", in {kernel}"))
    ))
}

/// A kernel that ran for rows of several kernels, at times other than theirs.
fn one_for_several(timed: &[&Seen<'_>]) -> Option<String> {
    let mut by_kernel: BTreeMap<&str, Vec<&Seen<'_>>> = BTreeMap::new();
    for seen in timed {
        if let Some(kernel) = seen.time.kernel.as_deref() {
            by_kernel.entry(kernel).or_default().push(seen);
        }
    }
    by_kernel.into_iter().find_map(|(kernel, seen)| {
        let rows: BTreeSet<&str> = seen.iter().map(|seen| seen.row).collect();
        let apart = seen.iter().find(|seen| !seen.time.agrees())?;
        (rows.len() > 1).then(|| {
            format!(
                "{kernel} ran for rows of {} kernels, first {} for {}: {:.1} us instead of {:.1} us",
                rows.len(),
                apart.row,
                apart.time.shape,
                apart.time.us.unwrap_or_default(),
                apart.time.tuned_us
            )
        })
    })
}

/// Whether rows with different kernels and the same K ran kernels of different names. The same K, because a kernel's
/// name on the device depends on how K divides.
fn each_its_own(timed: &[&Seen<'_>]) -> bool {
    let mut by_k: BTreeMap<u32, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for seen in timed {
        if let Some(kernel) = seen.time.kernel.as_deref() {
            let rows = by_k.entry(seen.time.shape.k).or_default();
            rows.entry(seen.row).or_default().insert(kernel);
        }
    }
    let told = timed.iter().all(|seen| seen.time.kernel.is_some());
    told && by_k.values().any(|rows| rows.len() > 1)
}

/// The factor by which all are slower or faster, if there is a single, small one. Two rows could share one by chance.
fn common_factor(timed: &[&Seen<'_>]) -> Option<f64> {
    let mut factors: Vec<f64> = timed
        .iter()
        .filter_map(|seen| Some(seen.time.us? / seen.time.tuned_us))
        .collect();
    factors.sort_by(f64::total_cmp);
    let median = *factors.get(factors.len() / 2)?;
    let alike = factors
        .iter()
        .all(|factor| (factor / median - 1.0).abs() <= KernelTime::TOLERANCE);
    (factors.len() > 2 && alike && (median - 1.0).abs() <= CLOCK).then_some(median)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Op, Shape};

    fn time(m: u32, tuned_us: f64, us: f64, kernel: Option<&str>) -> KernelTime {
        KernelTime {
            shape: Shape {
                op: Op::Blockscale,
                m,
                n: 512,
                k: 7168,
                dtype: String::new(),
            },
            tuned_us,
            us: Some(us),
            clock: "device".to_owned(),
            kernel: kernel.map(str::to_owned),
        }
    }

    fn judged(rows: &[&str], times: &[KernelTime], by_name: bool) -> Ran {
        let seen: Vec<Seen<'_>> = rows
            .iter()
            .zip(times)
            .map(|(row, time)| Seen { row, time, by_name })
            .collect();
        judge(&seen)
    }

    #[test]
    fn none_at_its_time_is_another_kernel_unless_the_names_explain_it() {
        let times = [time(1, 20.0, 31.0, None), time(64, 25.0, 61.0, None)];
        let Ran::Other(why) = judged(&["a", "b"], &times, false) else {
            panic!("taken for tuned")
        };
        insta::assert_snapshot!(why, @"none of the 2 tuned kernels that were timed takes the time it was tuned at, first gemm_a8w8_blockscale M=1 N=512 K=7168: 31.0 us instead of 20.0 us");
        assert!(matches!(
            judged(&["a", "b"], &times, true),
            Ran::Explained(_)
        ));
        let one = [times[0].clone(), time(64, 25.0, 25.5, None)];
        assert_eq!(judged(&["a", "b"], &one, false), Ran::Tuned);
    }

    #[test]
    fn one_kernel_for_the_rows_of_two_is_another_kernel_although_one_time_agrees() {
        let times = [
            time(1, 20.0, 20.1, Some("default")),
            time(64, 25.0, 61.0, Some("default")),
        ];
        assert!(matches!(judged(&["a", "b"], &times, false), Ran::Other(_)));
        // Two names for one kernel, each with its own time.
        let times = [times[0].clone(), time(64, 25.0, 25.1, Some("default"))];
        assert_eq!(judged(&["a", "b"], &times, false), Ran::Tuned);
    }

    #[test]
    fn different_kernels_or_one_factor_explain_times_that_are_apart() {
        let times = [
            time(1, 20.0, 31.0, Some("x")),
            time(64, 25.0, 61.0, Some("y")),
        ];
        assert!(matches!(
            judged(&["a", "b"], &times, false),
            Ran::Explained(_)
        ));
        assert!(
            matches!(judged(&["a", "a"], &times, false), Ran::Other(_)),
            "rows of one kernel show nothing"
        );
        let slower = |by: f64| [1, 2, 3].map(|m| time(m, 20.0, 20.0 * by, None));
        let rows = ["a", "b", "c"];
        assert!(matches!(
            judged(&rows, &slower(1.08), false),
            Ran::Explained(_)
        ));
        assert!(matches!(judged(&rows, &slower(1.5), false), Ran::Other(_)));
    }

    #[test]
    fn a_wall_clock_and_no_time_say_nothing() {
        let mut wall = time(1, 20.0, 900.0, None);
        wall.clock = "wall".to_owned();
        assert!(matches!(judged(&["a"], &[wall], false), Ran::Explained(_)));
        let mut none = time(1, 20.0, 0.0, None);
        none.us = None;
        assert!(matches!(judged(&["a"], &[none], false), Ran::Explained(_)));
        assert_eq!(judge(&[]), Ran::Tuned);
    }
}
