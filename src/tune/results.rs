//! The results of a tuning run so far: an append-only file that a kill cannot corrupt.
//!
//! `results.jsonl` starts with a header that is the identity of the results: backend, device, versions, kernels.
//! Every finished shape and every quarantined candidate is one line, written and synced before it is reported.
//! Opening the file again gives what is done; a half-written last line is cut off; a different identity is refused by
//! name.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::protocol::{Candidate, Device};
use super::rules::Effort;
use super::task::Task;
use crate::problem::Shape;
use crate::store::journal::{Journal, JournalError, Record};
use crate::store::lock::{Holder, Lock, LockError};

/// Name of the results file in the output folder.
pub const RESULTS: &str = "results.jsonl";

/// Name of the lock file in the output folder.
pub const LOCK: &str = "tune.lock";

/// Version of the line format below.
const FORMAT: u32 = 1;

/// The identity of results: a file only contains results with one identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the file format.
    pub format: u32,
    pub backend: String,
    /// The backend's settings, as sent with `hello`.
    pub options: serde_json::Value,
    pub device: String,
    /// Architecture of the device.
    pub arch: String,
    /// Compute units of the device.
    pub cu_num: u32,
    /// Versions of the software on it.
    pub versions: BTreeMap<String, String>,
    /// Digest of the kernels.
    pub kernel_hash: String,
}

impl Identity {
    /// The identity of results measured on `device` with `options`.
    pub fn of(device: &Device, options: &serde_json::Value) -> Self {
        Self {
            format: FORMAT,
            backend: device.backend.clone(),
            options: options.clone(),
            device: device.name.clone(),
            arch: device.arch.clone(),
            cu_num: device.cu_num,
            versions: device.versions.clone(),
            kernel_hash: device.kernel_hash.clone(),
        }
    }

    /// The first field in which the two differ: its name, our value, theirs.
    pub fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let versions = |identity: &Self| {
            identity
                .versions
                .iter()
                .map(|(name, version)| format!("{name} {version}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        [
            ("format", self.format.to_string(), other.format.to_string()),
            ("backend", self.backend.clone(), other.backend.clone()),
            ("device", self.device.clone(), other.device.clone()),
            ("arch", self.arch.clone(), other.arch.clone()),
            ("cu_num", self.cu_num.to_string(), other.cu_num.to_string()),
            ("versions", versions(self), versions(other)),
            (
                "kernels",
                self.kernel_hash.clone(),
                other.kernel_hash.clone(),
            ),
            (
                "options",
                self.options.to_string(),
                other.options.to_string(),
            ),
        ]
        .into_iter()
        .find(|(_, ours, theirs)| ours != theirs)
    }
}

/// The result of one race.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row<P = Shape> {
    pub shape: P,
    /// The candidate that should serve it from now on.
    pub candidate: Candidate,
    /// Whether that is what serves it already.
    pub incumbent_kept: bool,
    /// Median time of the candidate, µs.
    pub us: f64,
    /// What served it before, if that is known.
    pub incumbent: Option<Candidate>,
    /// The incumbent's median time in the same run-off, µs.
    pub incumbent_us: Option<f64>,
    /// Relative spread of the paired times.
    pub noise: f64,
    /// Share of wrong elements of the winner.
    pub err_ratio: f64,
    pub timed: u32,
    /// Seconds of device time the race took.
    pub busy_s: f64,
    /// The effort of the race.
    pub effort: Effort,
}

/// A candidate that faulted twice, the second time alone on a fresh worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quarantined<P = Shape> {
    pub shape: P,
    pub candidate: Candidate,
    pub evidence: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
enum Entry<P> {
    Header { identity: Identity },
    Row { row: Row<P> },
    Quarantined { quarantined: Quarantined<P> },
}

/// Why results cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another process tunes into this folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The first line is not a header.
    #[error("read `{path}`: it does not begin with the header of tuning results")]
    NoHeader { path: Utf8PathBuf },
    /// The results there were measured on something else.
    #[error("add to `{path}`: it was measured with {field} `{theirs}`, now it is `{ours}`")]
    OtherIdentity {
        path: Utf8PathBuf,
        field: &'static str,
        /// The value in the file.
        theirs: String,
        ours: String,
    },
}

/// Locks an output folder: one run writes into it at a time.
pub fn lock(folder: &Utf8Path) -> Result<Lock, ResultsError> {
    let holder = Holder::this_process("gemmtune tune");
    Ok(Lock::take(&folder.join(LOCK), &holder)?)
}

/// Opens or creates the results file in `folder`, whose first entry identifies its results; returns the writer and
/// the entries after the first.
pub(super) fn open<E: Serialize + DeserializeOwned>(
    folder: &Utf8Path,
    identity: &Identity,
    header: impl Fn(Identity) -> E,
    identity_of: impl Fn(&E) -> Option<Identity>,
) -> Result<(Journal, Vec<E>), ResultsError> {
    let path = folder.join(RESULTS);
    let (mut journal, records) = if path.exists() {
        Journal::open::<E>(&path)?
    } else {
        (Journal::create(&path)?, Vec::new())
    };
    let mut entries = records.into_iter().map(|record| record.event);
    match entries.next().as_ref().map(&identity_of) {
        None => {
            let at = jiff::Timestamp::now();
            let event = header(identity.clone());
            journal.append(&Record { at, event })?;
        }
        Some(Some(theirs)) => {
            if let Some((field, ours, theirs)) = identity.difference(&theirs) {
                return Err(ResultsError::OtherIdentity {
                    path,
                    field,
                    theirs,
                    ours,
                });
            }
        }
        Some(None) => return Err(ResultsError::NoHeader { path }),
    }
    let entries: Vec<E> = entries.collect();
    if entries.iter().any(|entry| identity_of(entry).is_some()) {
        return Err(ResultsError::NoHeader { path });
    }
    Ok((journal, entries))
}

/// The open results file.
#[derive(Debug)]
pub struct Results<P = Shape> {
    journal: Journal,
    /// Finished shapes, in the order found; a shape done again comes last.
    pub rows: Vec<Row<P>>,
    /// Candidates that must not be tried again.
    pub quarantined: Vec<Quarantined<P>>,
}

impl<P: Task> Results<P> {
    /// Opens or creates the results in `folder` for `identity`. The caller holds the folder's lock.
    pub fn open(folder: &Utf8Path, identity: &Identity) -> Result<Self, ResultsError> {
        let header = |identity| Entry::Header { identity };
        let identity_of = |entry: &Entry<P>| match entry {
            Entry::Header { identity } => Some(identity.clone()),
            _ => None,
        };
        let (journal, entries) = open(folder, identity, header, identity_of)?;
        let mut results = Self {
            journal,
            rows: Vec::new(),
            quarantined: Vec::new(),
        };
        for entry in entries {
            match entry {
                Entry::Header { .. } => {}
                Entry::Row { row } => results.remember(row),
                Entry::Quarantined { quarantined } => results.quarantined.push(quarantined),
            }
        }
        Ok(results)
    }

    /// Stores a finished race, which is durable when this returns.
    pub fn keep(&mut self, row: &Row<P>) -> Result<(), ResultsError> {
        self.append(Entry::Row { row: row.clone() })?;
        self.remember(row.clone());
        Ok(())
    }

    /// Stores a quarantined candidate.
    pub fn keep_quarantined(&mut self, quarantined: &Quarantined<P>) -> Result<(), ResultsError> {
        self.append(Entry::Quarantined {
            quarantined: quarantined.clone(),
        })?;
        self.quarantined.push(quarantined.clone());
        Ok(())
    }

    /// The row of `shape`, if it was found with at least `effort` against the same `incumbent`.
    pub fn done(
        &self,
        shape: &P,
        effort: Effort,
        incumbent: Option<&Candidate>,
    ) -> Option<&Row<P>> {
        self.rows.iter().find(|row| {
            row.shape == *shape && row.effort >= effort && row.incumbent.as_ref() == incumbent
        })
    }

    fn remember(&mut self, row: Row<P>) {
        self.rows.retain(|old| old.shape != row.shape);
        self.rows.push(row);
    }

    fn append(&mut self, event: Entry<P>) -> Result<(), ResultsError> {
        let at = jiff::Timestamp::now();
        Ok(self.journal.append(&Record { at, event })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Op;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    fn identity() -> Identity {
        Identity {
            format: FORMAT,
            backend: "reference".to_owned(),
            options: serde_json::json!({}),
            device: "cpu".to_owned(),
            arch: "avx2".to_owned(),
            cu_num: 2,
            versions: BTreeMap::from([("refengine".to_owned(), "0.1.0".to_owned())]),
            kernel_hash: "abc".to_owned(),
        }
    }

    fn row(m: u32) -> Row {
        Row {
            shape: Shape {
                op: Op::Blockscale,
                m,
                n: 256,
                k: 256,
                dtype: String::new(),
            },
            candidate: serde_json::json!({"kernelId": 1}),
            incumbent_kept: false,
            us: 10.5,
            incumbent: None,
            incumbent_us: None,
            noise: 0.01,
            err_ratio: 0.0,
            timed: 3,
            busy_s: 0.5,
            effort: Effort::Quick,
        }
    }

    #[test]
    fn a_file_cut_in_its_last_line_goes_on_behind_the_line_before() {
        let (_keep, folder) = folder();
        let mut results = Results::open(&folder, &identity()).unwrap();
        results.keep(&row(1)).unwrap();
        results.keep(&row(2)).unwrap();
        drop(results);
        let path = folder.join(RESULTS);
        let whole = fs_err::read(&path).unwrap();
        crate::store::file::write_atomic(&path, &whole[..whole.len() - 30]).unwrap();
        let mut reopened = Results::open(&folder, &identity()).unwrap();
        assert_eq!(reopened.rows, [row(1)]);
        reopened.keep(&row(3)).unwrap();
        drop(reopened);
        let again = Results::<Shape>::open(&folder, &identity()).unwrap();
        assert_eq!(again.rows, [row(1), row(3)]);
    }

    #[test]
    fn another_device_is_refused_by_name() {
        let (_keep, folder) = folder();
        Results::<Shape>::open(&folder, &identity()).unwrap();
        let other = Identity {
            device: "another cpu".to_owned(),
            ..identity()
        };
        let error = Results::<Shape>::open(&folder, &other).unwrap_err();
        insta::assert_snapshot!(error.to_string().replace(folder.as_str(), "[folder]"), @"add to `[folder]/results.jsonl`: it was measured with device `cpu`, now it is `another cpu`");
    }

    #[test]
    fn a_row_counts_as_done_only_for_the_same_incumbent_and_no_more_effort() {
        let (_keep, folder) = folder();
        let mut results = Results::open(&folder, &identity()).unwrap();
        results.keep(&row(1)).unwrap();
        let shape = row(1).shape;
        let other = serde_json::json!({"kernelId": 7});
        assert!(results.done(&shape, Effort::Quick, None).is_some());
        assert!(results.done(&shape, Effort::Full, None).is_none());
        assert!(results.done(&shape, Effort::Quick, Some(&other)).is_none());
    }

    #[test]
    fn a_second_holder_of_the_folder_is_told_who_the_first_is() {
        let (_keep, folder) = folder();
        let _held = lock(&folder).unwrap();
        let error = lock(&folder).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
    }
}
