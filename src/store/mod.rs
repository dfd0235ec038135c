//! What outlasts a process: atomic files, the run folder with its lock and journal, the ledger.

pub mod digest;
pub mod file;
pub mod journal;
pub mod ledger;
pub mod lock;
pub mod run_dir;
