//! Reading and editing Python source without reprinting it.
//!
//! A [`source::Source`] is one file: its bytes, its style and its statements as the small tree of
//! [`syntax`]. An [`edit::Patch`] is byte ranges and their replacements; applying it parses the
//! result again, so an edit that breaks the file is never returned. The parser's own types stay
//! inside `convert.rs`. This room neither reads nor writes files, and starts no process.

mod convert;
pub mod edit;
mod extent;
pub mod hooks;
pub mod imports;
pub mod refusal;
pub mod source;
pub mod syntax;
