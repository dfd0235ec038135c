//! What the judge's processes answered, each answer on the disk before the run relies on it: a killed run goes on behind the last one.

use std::collections::BTreeSet;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use super::ask::Tried;
use crate::kernel::gone;
use crate::run::error::{Error, ErrorKind};
use crate::store::journal::{Journal, JournalError, Record};
use crate::tune::moe::MoeTask;

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first: what the answers are of, whatever decides which kernels run.
    Of(String),
    Tried(Answered),
}

/// What was found of one size.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answered {
    pub(super) task: MoeTask,
    pub(super) tried: Tried,
    /// Kernels that its process had asked for until then and that the compiled modules do not have.
    pub(super) not_found: BTreeSet<String>,
}

/// An open file of answers.
#[derive(Debug)]
pub(super) struct Kept {
    journal: Journal,
}

impl Kept {
    /// Opens the file at `path` and reads what stands in it; answers of anything but `identity` are thrown away.
    pub(super) fn open(path: &Utf8Path, identity: &str) -> Result<(Self, Vec<Answered>), Error> {
        if path.is_file() {
            let (journal, lines) = Journal::open::<Line>(path).map_err(|error| failed(&error))?;
            let mut lines = lines.into_iter().map(|line| line.event);
            if matches!(lines.next(), Some(Line::Of(of)) if of == identity) {
                let answered = lines.filter_map(|line| match line {
                    Line::Tried(answered) => Some(answered),
                    Line::Of(_) => None,
                });
                return Ok((Self { journal }, answered.collect()));
            }
        }
        gone(fs_err::remove_file(path))?;
        if let Some(folder) = path.parent() {
            fs_err::create_dir_all(folder).map_err(|error| Error::file(&error))?;
        }
        let mut kept = Self {
            journal: Journal::create(path).map_err(|error| failed(&error))?,
        };
        kept.append(Line::Of(identity.to_owned()))?;
        Ok((kept, Vec::new()))
    }

    /// Keeps an answer.
    pub(super) fn add(&mut self, answered: Answered) -> Result<(), Error> {
        self.append(Line::Tried(answered))
    }

    fn append(&mut self, event: Line) -> Result<(), Error> {
        let record = Record {
            at: jiff::Timestamp::now(),
            event,
        };
        self.journal.append(&record).map_err(|error| failed(&error))
    }
}

fn failed(error: &JournalError) -> Error {
    let kind = match error {
        JournalError::Io { .. } => ErrorKind::Environment,
        JournalError::Damaged { .. } => ErrorKind::NotResumable,
    };
    Error::caused(kind, error)
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::super::ask::Answer;
    use super::*;
    use crate::tune::moe::Sizes;

    fn answered(m: u32) -> Answered {
        let sizes = Sizes {
            experts: 4,
            inter: 128,
            hidden: 128,
            topk: 2,
        };
        let answer = Answer {
            error: Some(0.004),
            us: vec![10.5; 6],
            ..Answer::default()
        };
        Answered {
            task: MoeTask::whole(sizes, m),
            tried: Tried {
                answer,
                found: None,
            },
            not_found: ["a".to_owned()].into(),
        }
    }

    #[test]
    fn answers_stand_when_the_file_is_opened_again_and_none_of_another_identity_does() {
        let keep = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(keep.path().join("judge/today.jsonl")).unwrap();
        let (mut kept, there) = Kept::open(&path, "one").unwrap();
        assert!(there.is_empty());
        kept.add(answered(1)).unwrap();
        kept.add(answered(64)).unwrap();
        drop(kept);
        // What a kill cut short is no answer.
        let mut text = fs_err::read_to_string(&path).unwrap();
        text.push_str("{\"at\": \"2026");
        fs_err::write(&path, text).unwrap();
        let (mut kept, there) = Kept::open(&path, "one").unwrap();
        let of: Vec<u32> = there.iter().map(|answered| answered.task.m).collect();
        assert_eq!(of, [1, 64]);
        assert_eq!(there[1].tried.answer.us, [10.5; 6]);
        assert!(there[0].not_found.contains("a"));
        kept.add(answered(128)).unwrap();
        drop(kept);
        assert_eq!(Kept::open(&path, "one").unwrap().1.len(), 3);
        assert!(Kept::open(&path, "two").unwrap().1.is_empty());
        assert!(Kept::open(&path, "one").unwrap().1.is_empty());
    }
}
