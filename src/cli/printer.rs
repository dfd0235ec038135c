//! The only writer of standard output and standard error.
//!
//! So this is the only place that has to keep secrets, escape sequences and long quotations of input off a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::json;

use super::plain;
use crate::run::error::{Error, ErrorKind};
use crate::workload::secret::Secrets;

/// Destination of a command's output: data to standard output, all messages to standard error.
#[derive(Debug)]
pub struct Printer {
    json: bool,
    /// Whether standard output has been written to.
    written: AtomicBool,
    /// The secrets of the current configuration.
    secrets: OnceLock<Secrets>,
}

impl Printer {
    /// A printer; with `json` standard output contains exactly one document.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            written: AtomicBool::new(false),
            secrets: OnceLock::new(),
        }
    }

    /// Masks `secrets` from now on; only the first call has an effect.
    pub fn keep(&self, secrets: Secrets) {
        let _ = self.secrets.set(secrets);
    }

    fn secrets(&self) -> &Secrets {
        static NONE: OnceLock<Secrets> = OnceLock::new();
        self.secrets
            .get()
            .unwrap_or_else(|| NONE.get_or_init(Secrets::default))
    }

    /// Text as it may be shown: without secrets and control characters.
    pub fn plain(&self, text: &str) -> String {
        plain::cut(&plain::escaped(&self.secrets().mask(text)), &['`'])
    }

    /// An error message, which may quote its cause.
    fn message(&self, text: &str) -> String {
        plain::cut(&plain::escaped(&self.secrets().mask(text)), &['`', '"'])
    }

    /// Whether the user asked for one JSON document.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Writes raw data to standard output. It is not an error if the reader has closed it (`| head`).
    pub fn data(&self, bytes: &[u8]) -> Result<(), Error> {
        self.written.store(true, Ordering::Relaxed);
        let mut output = std::io::stdout().lock();
        let shown;
        let bytes = if output.is_terminal() {
            shown = plain::escaped(&String::from_utf8_lossy(bytes));
            shown.as_bytes()
        } else {
            bytes
        };
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
        let failed = |error| Error::to(ErrorKind::Bug, "serialise the result", error);
        let mut document = serde_json::to_value(document).map_err(failed)?;
        self.secrets().mask_json(&mut document);
        let mut text = serde_json::to_string_pretty(&document).map_err(failed)?;
        text.push('\n');
        self.data(plain::escaped_json(&text).as_bytes())
    }

    /// Prints a message on standard error.
    pub fn say(&self, text: impl AsRef<str>) {
        anstream::eprintln!("{}", self.plain(text.as_ref()));
    }

    /// Prints a warning: something is wrong but the command continues.
    pub fn warn(&self, text: impl AsRef<str>) {
        let style = anstyle::Style::new()
            .fg_color(Some(anstyle::AnsiColor::Yellow.into()))
            .bold();
        anstream::eprintln!("{style}warning{style:#}: {}", self.message(text.as_ref()));
    }

    /// Prints how the command failed, and what to do next. With `json` the error is the document, unless the command
    /// has printed its own (as `lint` does when a table has errors).
    pub fn error(&self, error: &Error) {
        if self.json && !self.written.load(Ordering::Relaxed) {
            // If standard output cannot be written, there is still standard error and the exit code.
            let mut document = json!({ "error": error });
            document["error"]["message"] = plain::cut(&error.to_string(), &['`', '"']).into();
            let _ = self.json(&document);
        }
        let style = anstyle::Style::new()
            .fg_color(Some(anstyle::AnsiColor::Red.into()))
            .bold();
        anstream::eprintln!(
            "{style}error{style:#}: {}",
            self.message(&error.to_string())
        );
        for hint in error.hints() {
            anstream::eprintln!("\nhint: {}", self.plain(hint));
        }
    }
}
