//! Processes: every child lives under a keeper and leaves nothing behind.
//!
//! A child that gemmtune starts is started by a *keeper*: this same binary, in a process group of its
//! own, that is the child subreaper of everything below it and holds the read end of a lifeline pipe.
//! When the lifeline closes, because gemmtune asked for it or because gemmtune was killed, the keeper
//! ends every descendant, including daemons with sessions of their own, and then itself. So the sweep
//! only ever reaches processes that gemmtune started, and a SIGKILL of gemmtune leaves none of them.
//!
//! This room knows nothing of servers, stages or tuning.

pub mod interrupt;
pub mod keeper;
pub mod paste;
pub mod ports;
pub mod run;
pub mod spawn;
pub mod tree;
pub mod watch;

pub use interrupt::Interrupt;
pub use paste::quoted;
pub use run::{Ran, RunError, run};
pub use spawn::{Keeper, KeptChild, Pipes, Spawn, SpawnError, WaitOutcome};
