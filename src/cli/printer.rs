//! The only writer of standard output and standard error.
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::json;

use crate::run::error::{Error, ErrorKind};

/// Where a command's words go: data to standard output, everything for people to standard error.
#[derive(Debug)]
pub struct Printer {
    json: bool,
    /// Whether standard output has been written to.
    written: AtomicBool,
}

impl Printer {
    /// A printer; with `json` the only thing on standard output is one document.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            written: AtomicBool::new(false),
        }
    }

    /// Whether the user asked for one JSON document.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Writes raw data to standard output. A reader that hung up (`| head`) is no failure.
    pub fn data(&self, bytes: &[u8]) -> Result<(), Error> {
        self.written.store(true, Ordering::Relaxed);
        let mut output = std::io::stdout().lock();
        match output.write_all(bytes).and_then(|()| output.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::to(
                ErrorKind::Environment,
                "write to standard output",
                error,
            )),
            _ => Ok(()),
        }
    }

    /// Writes `document` as the command's one JSON document.
    pub fn json(&self, document: &impl Serialize) -> Result<(), Error> {
        let mut text = serde_json::to_string_pretty(document)
            .map_err(|error| Error::to(ErrorKind::Bug, "serialise the result", error))?;
        text.push('\n');
        self.data(text.as_bytes())
    }

    /// Says something to people, on standard error.
    pub fn say(&self, text: impl AsRef<str>) {
        anstream::eprintln!("{}", text.as_ref());
    }

    /// Says that something is off but the command goes on.
    pub fn warn(&self, text: impl AsRef<str>) {
        let style = anstyle::Style::new()
            .fg_color(Some(anstyle::AnsiColor::Yellow.into()))
            .bold();
        anstream::eprintln!("{style}warning{style:#}: {}", text.as_ref());
    }

    /// Says how the command failed, and what to do next. With `json` the error is the
    /// one document, unless the command printed its own (as `lint` does when a table has errors).
    pub fn error(&self, error: &Error) {
        if self.json && !self.written.load(Ordering::Relaxed) {
            // Standard output that cannot be written leaves standard error and the exit code.
            let _ = self.json(&json!({ "error": error }));
        }
        let style = anstyle::Style::new()
            .fg_color(Some(anstyle::AnsiColor::Red.into()))
            .bold();
        anstream::eprintln!("{style}error{style:#}: {error}");
        for hint in error.hints() {
            anstream::eprintln!("\nhint: {hint}");
        }
    }
}
