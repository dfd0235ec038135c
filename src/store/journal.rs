//! The journal: append-only JSON Lines, each line durable before anything relies on it.
//!
//! A half-written last line is the normal trace of a killed process: it is cut off and the run goes on. A bad line
//! anywhere else is damage and is refused with its line number.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::file::sync_folder;

/// One line of the journal: a time stamp and its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record<T> {
    /// UTC.
    pub at: jiff::Timestamp,
    pub event: T,
}

/// Failed to read or write a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file could not be opened, read, cut or written.
    #[error("use the journal `{path}`")]
    Io {
        path: Utf8PathBuf,
        source: io::Error,
    },
    /// A line in the middle does not parse.
    #[error("read the journal `{path}`: line {line} is damaged ({source})")]
    Damaged {
        path: Utf8PathBuf,
        /// Counted from 1.
        line: usize,
        source: serde_json::Error,
    },
}

/// An open journal. There is one writer: the holder of the run folder's lock.
#[derive(Debug)]
pub struct Journal {
    path: Utf8PathBuf,
    file: File,
    /// Length of the part that holds complete records, in bytes.
    whole: u64,
}

impl Journal {
    /// Starts a journal; the file must not exist yet.
    pub fn create(path: &Utf8Path) -> Result<Self, JournalError> {
        let failed = |source| JournalError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::options()
            .append(true)
            .create_new(true)
            .open(path)
            .map_err(failed)?;
        if let Some(folder) = path.parent() {
            sync_folder(folder).map_err(failed)?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            whole: 0,
        })
    }

    /// Reads every complete record of the journal at `path`, without writing to it.
    pub fn read<T: DeserializeOwned>(path: &Utf8Path) -> Result<Vec<Record<T>>, JournalError> {
        Ok(read_whole(path)?.0)
    }

    /// Opens a journal to continue it: returns its records, and a writer positioned after the last complete one.
    pub fn open<T: DeserializeOwned>(
        path: &Utf8Path,
    ) -> Result<(Self, Vec<Record<T>>), JournalError> {
        let failed = |source| JournalError::Io {
            path: path.to_owned(),
            source,
        };
        let (records, whole) = read_whole(path)?;
        let mut file = File::options().append(true).open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() > whole {
            file.set_len(whole).map_err(failed)?;
            file.sync_all().map_err(failed)?;
        }
        file.seek(io::SeekFrom::End(0)).map_err(failed)?;
        Ok((
            Self {
                path: path.to_owned(),
                file,
                whole,
            },
            records,
        ))
    }

    /// Appends one record, which is on disk when this returns. A record that could not be written completely is
    /// removed again: the next one, written when there is space, must not follow half a line.
    pub fn append<T: Serialize>(&mut self, record: &Record<T>) -> Result<(), JournalError> {
        let failed = |source| JournalError::Io {
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        let written = self
            .file
            .write_all(&line)
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Should this fail as well, opening the journal will cut the torn last line off.
            let _ = self.file.set_len(self.whole);
            return Err(failed(error));
        }
        self.whole += line.len() as u64;
        Ok(())
    }
}

/// The records, and the length of the part of the file that holds them.
fn read_whole<T: DeserializeOwned>(path: &Utf8Path) -> Result<(Vec<Record<T>>, u64), JournalError> {
    let bytes = super::file::read(path).map_err(|source| JournalError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mut records = Vec::new();
    let mut whole = 0;
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        if line.last() != Some(&b'\n') {
            break;
        }
        match serde_json::from_slice(line) {
            Ok(record) => records.push(record),
            // After a crash a torn block may end in a newline too; only the last line may be torn.
            Err(_) if whole + line.len() == bytes.len() => break,
            Err(source) => {
                return Err(JournalError::Damaged {
                    path: path.to_owned(),
                    line: index + 1,
                    source,
                });
            }
        }
        whole += line.len();
    }
    Ok((records, whole as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: &str) -> Record<String> {
        Record {
            at: jiff::Timestamp::UNIX_EPOCH,
            event: event.to_owned(),
        }
    }

    fn written(events: &[&str]) -> (tempfile::TempDir, Utf8PathBuf) {
        let keep = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(keep.path().join("journal.jsonl")).unwrap();
        let mut journal = Journal::create(&path).unwrap();
        for event in events {
            journal.append(&record(event)).unwrap();
        }
        (keep, path)
    }

    #[test]
    fn a_journal_cut_at_any_byte_loads_to_a_prefix_and_goes_on() {
        let events = ["one", "two\nwith a line end", "drei ü"];
        let (_keep, path) = written(&events);
        let bytes = fs_err::read(&path).unwrap();
        for cut in 0..=bytes.len() {
            fs_err::write(&path, &bytes[..cut]).unwrap();
            let (mut journal, records) = Journal::open::<String>(&path).unwrap();
            let loaded: Vec<&str> = records.iter().map(|record| &*record.event).collect();
            assert_eq!(loaded, events[..records.len()], "cut at {cut}");
            journal.append(&record("next")).unwrap();
            let again = Journal::read::<String>(&path).unwrap();
            assert_eq!(again.len(), records.len() + 1, "cut at {cut}");
            assert_eq!(again.last().unwrap().event, "next");
        }
    }

    #[test]
    fn a_record_that_found_no_space_leaves_nothing_in_front_of_the_next() {
        // Runs the test below under a file size limit, which stands in for a full disk.
        let limited = "trap '' XFSZ; ulimit -f 1; exec \"$0\" --ignored --exact \
                       store::journal::tests::write_until_there_is_no_space";
        let output = std::process::Command::new("bash")
            .args(["-c", limited])
            .arg(std::env::current_exe().unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "started by the test above, with a limit of 1 KiB"]
    fn write_until_there_is_no_space() {
        let (_keep, path) = written(&[&"x".repeat(600)]);
        let (mut journal, _) = Journal::open::<String>(&path).unwrap();
        let error = journal.append(&record(&"y".repeat(600))).unwrap_err();
        assert!(matches!(error, JournalError::Io { .. }), "{error}");
        journal.append(&record("z")).unwrap();
        let again = Journal::read::<String>(&path).unwrap();
        assert_eq!(again.len(), 2);
        assert_eq!(again[1].event, "z");
    }

    #[test]
    fn damage_in_the_middle_is_refused_with_its_line() {
        let (_keep, path) = written(&["one", "two", "three"]);
        let text = fs_err::read_to_string(&path)
            .unwrap()
            .replace("two", "tw\"o");
        fs_err::write(&path, text).unwrap();
        let error = Journal::read::<String>(&path).unwrap_err();
        assert!(
            matches!(error, JournalError::Damaged { line: 2, .. }),
            "{error}"
        );
    }
}
