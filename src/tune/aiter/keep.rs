//! The results so far, durable: an append-only file that a kill cannot corrupt.
//!
//! `results.jsonl` begins with the identity of the results: operation, device, software, and a digest of the tuner's
//! files. A row is stored as the tuner wrote it, the moment it is seen.

use camino::Utf8Path;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::store::journal::{Journal, Record};
use crate::tune::event::Unserved;
use crate::tune::results::{self, Identity, ResultsError};

/// A row of the tuner's for a problem `P`, and how it is stored.
pub(super) trait Found<P>: Clone {
    /// Its fields in the file.
    type Stored: Serialize + DeserializeOwned;

    /// Converts a row of `problem` for storing.
    fn store(&self, problem: &P) -> Self::Stored;

    /// Converts a stored row back; `None` if it cannot be parsed.
    fn restore(stored: Self::Stored, problem: &P) -> Option<Self>;

    /// Whether the tuner wrote the same row.
    fn is_copy_of(&self, other: &Self) -> bool;
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
enum Entry<P, S> {
    Header {
        identity: Identity,
    },
    Row {
        shape: P,
        #[serde(flatten)]
        row: S,
    },
    Refused {
        shape: P,
        #[serde(flatten)]
        row: S,
        reason: String,
    },
    Failed {
        shape: P,
        reason: String,
    },
}

#[derive(Debug)]
pub(super) struct Keep<P, R> {
    journal: Journal,
    pub(super) rows: Vec<(P, R)>,
    pub(super) refused: Vec<(P, R, String)>,
    pub(super) failed: Vec<Unserved<P>>,
}

impl<P, R> Keep<P, R>
where
    P: Clone + PartialEq + Serialize + DeserializeOwned,
    R: Found<P>,
{
    /// Opens or creates the results in `folder`, whose lock the caller holds.
    pub(super) fn open(folder: &Utf8Path, identity: &Identity) -> Result<Self, ResultsError> {
        let header = |identity| Entry::Header { identity };
        let identity_of = |entry: &Entry<P, R::Stored>| match entry {
            Entry::Header { identity } => Some(identity.clone()),
            _ => None,
        };
        let (journal, entries) = results::open(folder, identity, header, identity_of)?;
        let mut keep = Self {
            journal,
            rows: Vec::new(),
            refused: Vec::new(),
            failed: Vec::new(),
        };
        for entry in entries {
            match entry {
                Entry::Header { .. } => {}
                Entry::Row { shape, row } => {
                    if let Some(row) = R::restore(row, &shape) {
                        keep.remember(shape, row);
                    }
                }
                Entry::Refused { shape, row, reason } => {
                    if let Some(row) = R::restore(row, &shape) {
                        keep.refused.push((shape, row, reason));
                    }
                }
                Entry::Failed { shape, reason } => keep.failed.push(Unserved { shape, reason }),
            }
        }
        Ok(keep)
    }

    /// The row of `shape`, if it has one.
    pub(super) fn of(&self, shape: &P) -> Option<&R> {
        let found = self.rows.iter().find(|(known, _)| known == shape);
        found.map(|(_, row)| row)
    }

    /// Stores a row, replacing one of the same shape.
    pub(super) fn put(&mut self, shape: &P, row: R) -> Result<(), ResultsError> {
        self.append(Entry::Row {
            shape: shape.clone(),
            row: row.store(shape),
        })?;
        self.remember(shape.clone(), row);
        Ok(())
    }

    /// Stores a refusal and returns whether it is new: the same row is refused only once.
    pub(super) fn refuse(
        &mut self,
        shape: &P,
        row: &R,
        reason: &str,
    ) -> Result<bool, ResultsError> {
        let mut known = self.refused.iter();
        if known.any(|(known, of, _)| known == shape && of.is_copy_of(row)) {
            return Ok(false);
        }
        self.append(Entry::Refused {
            shape: shape.clone(),
            row: row.store(shape),
            reason: reason.to_owned(),
        })?;
        self.refused
            .push((shape.clone(), row.clone(), reason.to_owned()));
        Ok(true)
    }

    /// Stores that a shape has failed permanently.
    pub(super) fn fail(&mut self, failed: &Unserved<P>) -> Result<(), ResultsError> {
        self.append(Entry::Failed {
            shape: failed.shape.clone(),
            reason: failed.reason.clone(),
        })?;
        self.failed.retain(|known| known.shape != failed.shape);
        self.failed.push(failed.clone());
        Ok(())
    }

    fn remember(&mut self, shape: P, row: R) {
        self.failed.retain(|failed| failed.shape != shape);
        self.rows.retain(|(known, _)| *known != shape);
        self.rows.push((shape, row));
    }

    fn append(&mut self, event: Entry<P, R::Stored>) -> Result<(), ResultsError> {
        let at = jiff::Timestamp::now();
        Ok(self.journal.append(&Record { at, event })?)
    }
}
