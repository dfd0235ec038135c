//! Other runs of this user on this host, with which this one would disturb its measurements.
//!
//! Each active run has a locked file of its own in a folder of the host. A lock is released when its process ends, so
//! a killed run leaves an unlocked file, which the next one removes.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::store::file::entries;
use crate::store::lock::Holder;
use crate::workload::config::Config;
use crate::workload::env;

/// Variables of ROCm and CUDA that list the devices a process may use; the runtime uses the first one that is set.
const VISIBLE: [&str; 3] = [
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
];

/// Stands for every device of the host.
const ALL: &str = "all";

/// A run that is being worked on, with the GPUs it uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The process that works on it.
    pub(crate) holder: Holder,
    /// The GPUs it uses, as the variables name them; empty for the CPU alone.
    pub(crate) devices: Vec<String>,
}

impl Run {
    /// The run of `config` that `command` works on.
    pub(crate) fn of(config: &Config, command: &str) -> Self {
        let visible = VISIBLE.into_iter().find_map(|name| {
            let set = config.server.env.get(name).cloned();
            set.or_else(|| env::variable(name))
                .filter(|value| !value.is_empty())
        });
        let devices = match (config.backend.kind.is_built_in(), visible) {
            (true, _) => Vec::new(),
            (false, None) => vec![ALL.to_owned()],
            (false, Some(visible)) => visible.split(',').map(|id| id.trim().to_owned()).collect(),
        };
        Self {
            holder: Holder::this_process(command),
            devices,
        }
    }

    /// A device that both use.
    pub(crate) fn shares<'run>(&'run self, other: &'run Self) -> Option<&'run str> {
        let uses = |run: &Self, id: &str| run.devices.iter().any(|own| own == id || own == ALL);
        let mut shared = self.devices.iter().chain(&other.devices);
        shared
            .find(|id| {
                let id = id.as_str();
                (uses(self, id) || id == ALL && !self.devices.is_empty())
                    && (uses(other, id) || id == ALL && !other.devices.is_empty())
            })
            .map(String::as_str)
    }
}

/// The registration of a run on this host; removed when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    path: Utf8PathBuf,
    _locked: File,
}

impl Drop for Place {
    fn drop(&mut self) {
        // If it cannot be removed, the next run finds it unlocked.
        let _ = fs_err::remove_file(&self.path);
    }
}

/// The folder in which this user's runs on this host are registered.
pub(crate) fn folder() -> Option<Utf8PathBuf> {
    let user = fs_err::metadata("/proc/self").ok()?.uid();
    let temporary = Utf8PathBuf::try_from(std::env::temp_dir()).ok()?;
    Some(temporary.join(format!("gemmtune-{user}")))
}

/// Registers `run` in `folder`, and returns the runs that are registered already.
pub(crate) fn join(folder: &Utf8Path, run: &Run) -> io::Result<(Place, Vec<Run>)> {
    fs_err::create_dir_all(folder)?;
    // Of two that start at once, the second sees the first.
    let door = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))?;
    door.lock()?;
    let mut others = Vec::new();
    for entry in entries(folder)? {
        if entry.path().extension() != Some("json") {
            continue;
        }
        let mut file = fs_err::File::open(entry.path())?;
        match file.file().try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                others.extend(serde_json::from_str::<Run>(&text));
            }
            Ok(()) => fs_err::remove_file(entry.path())?,
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    let now = jiff::Timestamp::now().as_nanosecond();
    let path = folder.join(format!("{}-{now}.json", run.holder.pid));
    let mut file = File::options().create_new(true).write(true).open(&path)?;
    file.lock()?;
    file.write_all(serde_json::to_string(run)?.as_bytes())?;
    Ok((
        Place {
            path,
            _locked: file,
        },
        others,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(devices: &[&str]) -> Run {
        Run {
            holder: Holder::this_process("gemmtune run"),
            devices: devices.iter().map(|&id| id.to_owned()).collect(),
        }
    }

    #[test]
    fn a_run_sees_those_at_work_and_none_that_ended() {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().join("runs")).unwrap();
        let (first, others) = join(&folder, &run(&["0"])).unwrap();
        assert!(others.is_empty());
        let (second, others) = join(&folder, &run(&["1"])).unwrap();
        assert_eq!(
            others,
            [run(&["0"])].map(|mut other| {
                other.holder.since = others[0].holder.since;
                other
            })
        );
        drop(first);
        // As a killed process would leave it.
        fs_err::write(folder.join("1-1.json"), "{}").unwrap();
        let (_third, others) = join(&folder, &run(&[])).unwrap();
        assert_eq!(others.len(), 1);
        assert_eq!(others[0].devices, ["1"]);
        assert!(!folder.join("1-1.json").exists());
        drop(second);
    }

    #[test]
    fn runs_share_devices_that_both_name_and_all_is_every_one() {
        for (one, other, shared) in [
            (&["0", "1"][..], &["1", "2"][..], Some("1")),
            (&["0"], &["1"], None),
            (&["all"], &["3"], Some("all")),
            (&["all"], &["all"], Some("all")),
            (&[], &["all"], None),
            (&[], &[], None),
        ] {
            assert_eq!(run(one).shares(&run(other)), shared, "{one:?} {other:?}");
            assert_eq!(run(other).shares(&run(one)).is_some(), shared.is_some());
        }
    }
}
