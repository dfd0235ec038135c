//! The workload: how the user starts the server and measures it, as described in `gemmtune.toml`.
//!
//! This room reads launch scripts and live processes and writes nothing. Only `env` may read the process environment.

pub mod config;
pub mod container;
pub mod draft;
pub mod duration;
pub mod env;
pub mod load;
pub mod loopback;
pub mod observe;
pub mod quote;
pub mod role;
pub mod script;
pub mod secret;
pub mod share;
pub mod watch;
