//! What lasts: atomic files, and (as the rooms grow) the journal, the run folder and the ledger.

pub mod file;
