//! The candidates of each library that the tuner tried, counted from its profile files.
//!
//! A library whose module cannot be built or imported loses every candidate one by one, with the same sentinel as a
//! kernel that does not fit, and the tuner succeeds with the others. So each library's candidates are counted, and
//! one in which none was measured is reported with the tuner's message.

use std::collections::{BTreeMap, BTreeSet};

use super::Session;
use crate::problem::{Op, Shape};
use crate::table::aiter::Row;
use crate::tune::aiter::attempt::Files;
use crate::tune::aiter::outcome::{Accepted, LibraryCount};
use crate::tune::aiter::output::{TunerLine, read};
use crate::tune::aiter::session::earlier_attempts;
use crate::tune::aiter::{AiterTuneError, accept, rows};

/// A candidate: shape, library, kernel and split.
type Key = (Shape, String, Option<i64>, Option<i64>);

/// The result of a candidate; of all attempts the greatest counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum CandidateStatus {
    Refused,
    Lost,
    Timed,
}

impl Session<'_> {
    /// Counts every library's candidates over all attempts, those of earlier runs included.
    pub(super) fn libraries(&self, shapes: &[Shape]) -> Result<Vec<LibraryCount>, AiterTuneError> {
        let attempts = earlier_attempts(self.run.folder)?.into_iter();
        Ok(count(attempts, self.order.op, shapes))
    }
}

/// Counts the candidates of `shapes` in the files of `attempts`.
fn count(attempts: impl Iterator<Item = Files>, op: Op, shapes: &[Shape]) -> Vec<LibraryCount> {
    let mut statuses: BTreeMap<Key, CandidateStatus> = BTreeMap::new();
    let mut reasons: BTreeMap<String, String> = BTreeMap::new();
    for files in attempts {
        for row in rows::read(&files.profile, op) {
            let Some(library) = row.libtype.as_deref().map(str::to_owned) else {
                continue;
            };
            let Some(shape) = shapes.iter().find(|shape| accept::is_for(&row, shape)) else {
                continue;
            };
            let key = (shape.clone(), library, row.kernel_id, row.split_k);
            let status = status(&row);
            statuses
                .entry(key)
                .and_modify(|known| *known = status.max(*known))
                .or_insert(status);
        }
        for path in [&files.stdout, &files.stderr] {
            let bytes = fs_err::read(path).unwrap_or_default();
            for line in String::from_utf8_lossy(&bytes).lines() {
                if let Some(TunerLine::Warned {
                    library: Some(library),
                    text,
                    ..
                }) = read(line)
                {
                    reasons.entry(library).or_insert(text);
                }
            }
        }
    }
    let mut counts: BTreeMap<String, LibraryCount> = BTreeMap::new();
    for ((_, library, ..), status) in statuses {
        let count = counts
            .entry(library.clone())
            .or_insert_with(|| LibraryCount::of(library));
        count.candidates += 1;
        match status {
            CandidateStatus::Timed => count.timed += 1,
            CandidateStatus::Lost => count.lost += 1,
            CandidateStatus::Refused => count.refused += 1,
        }
    }
    counts
        .into_values()
        .map(|count| LibraryCount {
            reason: (count.timed == 0)
                .then(|| reasons.get(&count.library).cloned())
                .flatten(),
            ..count
        })
        .collect()
}

fn status(row: &Row) -> CandidateStatus {
    match row.us {
        Some(us) if us.is_finite() && us > 0.0 => CandidateStatus::Timed,
        Some(us) if us.is_infinite() => CandidateStatus::Lost,
        _ => CandidateStatus::Refused,
    }
}

/// Refuses a search in which a library was lost completely and no other was searched completely, because then it is
/// unknown what its rows are the best of.
pub(super) fn judge(libraries: &[LibraryCount]) -> Result<(), AiterTuneError> {
    let mut timed = libraries.iter().filter(|library| library.timed > 0);
    let torn = timed.clone().next().is_some() && timed.all(|library| library.lost > 0);
    match libraries.iter().find_map(LibraryCount::loss) {
        Some(loss) if torn => Err(AiterTuneError::NoLibraryWhole(loss)),
        _ => Ok(()),
    }
}

/// Counts a lost library's candidates as unmeasured candidates of each row.
pub(super) fn charge(rows: &mut [Accepted], libraries: &[LibraryCount]) {
    let shapes: BTreeSet<&Shape> = rows.iter().map(|row| &row.shape).collect();
    let shapes = u32::try_from(shapes.len()).unwrap_or(u32::MAX).max(1);
    let each: u32 = libraries
        .iter()
        .filter(|library| library.is_lost())
        // Each shape has the same candidates in a library, except for splits: the smallest share is used.
        .map(|library| library.refused / shapes)
        .sum();
    for row in rows {
        row.unmeasured += each;
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;

    fn of(library: &str, timed: u32, lost: u32, refused: u32) -> LibraryCount {
        LibraryCount {
            candidates: timed + lost + refused,
            timed,
            lost,
            refused,
            ..LibraryCount::of(library.to_owned())
        }
    }

    #[test]
    fn a_library_that_cannot_be_built_is_counted_from_what_the_real_tuner_wrote() {
        let keep = tempfile::tempdir().unwrap();
        let files = Files::new(Utf8PathBuf::try_from(keep.path().to_owned()).unwrap());
        let case = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/lost-library");
        fs_err::copy(format!("{case}/profile.csv"), &files.profile).unwrap();
        fs_err::copy(format!("{case}/stdout.log"), &files.stdout).unwrap();
        let shapes = [16, 32].map(|m| Shape {
            op: Op::BlockscaleBpreshuffle,
            m,
            n: 256,
            k: 512,
            dtype: String::new(),
        });
        let found = count([files].into_iter(), Op::BlockscaleBpreshuffle, &shapes);
        let told: Vec<(&str, u32, u32)> = found
            .iter()
            .map(|one| (one.library.as_str(), one.candidates, one.timed))
            .collect();
        assert_eq!(
            told,
            [
                ("asm", 12, 0),
                ("ck", 36, 36),
                ("cktile", 16, 16),
                ("opus", 2, 0)
            ],
            "all 66 that were announced"
        );
        judge(&found).unwrap();
        let said: Vec<String> = found.iter().filter_map(LibraryCount::loss).collect();
        insta::assert_snapshot!(said.join("\n"), @"
        none of the 12 candidates of asm was measured (Could not find hipcc in PATH or ROCM_HOME(TREE)): rows are the best of the other libraries
        none of the 2 candidates of opus was measured (Could not find hipcc in PATH or ROCM_HOME(TREE)): rows are the best of the other libraries
        ");
    }

    #[test]
    fn a_library_without_a_time_is_an_error_where_no_other_was_searched_whole() {
        let asm = LibraryCount {
            reason: Some("Could not find hipcc".to_owned()),
            ..of("asm", 0, 0, 12)
        };
        judge(&[asm.clone(), of("ck", 36, 0, 2)]).unwrap();
        insta::assert_snapshot!(judge(&[asm, of("ck", 30, 6, 0)]).unwrap_err(), @"tell what the rows are the best of: none of the 12 candidates of asm was measured (Could not find hipcc): rows are the best of the other libraries, and each of those lost candidates to time-outs or faults too");
        judge(&[of("ck", 36, 2, 0)]).unwrap();
        assert!(
            judge(&[of("ck", 0, 4, 0)]).is_ok(),
            "then every shape has failed, and is said to"
        );
    }
}
