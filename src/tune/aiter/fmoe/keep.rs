//! What was found, durable: the same kind of file as for dense operations, a line for each row, refusal and failure.

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use super::call::Call;
use super::row::Line;
use crate::store::journal::{Journal, Record};
use crate::tune::event::Unserved;
use crate::tune::results::{self, Identity, ResultsError};

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
enum Entry {
    Header {
        identity: Identity,
    },
    Row {
        shape: Call,
        line: Line,
    },
    Refused {
        shape: Call,
        line: Line,
        reason: String,
    },
    Failed {
        shape: Call,
        reason: String,
    },
}

#[derive(Debug)]
pub(super) struct Keep {
    journal: Journal,
    pub(super) rows: Vec<(Call, Line)>,
    pub(super) refused: Vec<(Call, Line, String)>,
    pub(super) failed: Vec<Unserved<Call>>,
}

impl Keep {
    /// Opens or begins the results in `folder`, whose lock the caller holds.
    pub(super) fn open(folder: &Utf8Path, identity: &Identity) -> Result<Self, ResultsError> {
        let header = |identity| Entry::Header { identity };
        let identity_of = |entry: &Entry| match entry {
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
                Entry::Row { shape, line } => keep.remember(shape, line),
                Entry::Refused {
                    shape,
                    line,
                    reason,
                } => keep.refused.push((shape, line, reason)),
                Entry::Failed { shape, reason } => keep.failed.push(Unserved { shape, reason }),
            }
        }
        Ok(keep)
    }

    /// Whether `call` has a row.
    pub(super) fn has(&self, call: &Call) -> bool {
        self.rows.iter().any(|(known, _)| known == call)
    }

    /// Keeps the row of a call that has none; says whether it was news.
    pub(super) fn row(&mut self, call: &Call, line: &Line) -> Result<bool, ResultsError> {
        if self.has(call) {
            return Ok(false);
        }
        self.append(Entry::Row {
            shape: call.clone(),
            line: line.clone(),
        })?;
        self.remember(call.clone(), line.clone());
        Ok(true)
    }

    /// Keeps a refusal; the same row is refused once.
    pub(super) fn refuse(
        &mut self,
        call: &Call,
        line: &Line,
        reason: &str,
    ) -> Result<bool, ResultsError> {
        let known = (call.clone(), line.clone(), reason.to_owned());
        if self.refused.contains(&known) {
            return Ok(false);
        }
        self.append(Entry::Refused {
            shape: call.clone(),
            line: line.clone(),
            reason: reason.to_owned(),
        })?;
        self.refused.push(known);
        Ok(true)
    }

    /// Keeps that a call failed for good.
    pub(super) fn fail(&mut self, failed: &Unserved<Call>) -> Result<(), ResultsError> {
        self.append(Entry::Failed {
            shape: failed.shape.clone(),
            reason: failed.reason.clone(),
        })?;
        self.failed.retain(|known| known.shape != failed.shape);
        self.failed.push(failed.clone());
        Ok(())
    }

    fn remember(&mut self, call: Call, line: Line) {
        self.failed.retain(|failed| failed.shape != call);
        self.rows.push((call, line));
    }

    fn append(&mut self, event: Entry) -> Result<(), ResultsError> {
        let at = jiff::Timestamp::now();
        Ok(self.journal.append(&Record { at, event })?)
    }
}
