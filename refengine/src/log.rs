//! The server's log: SGLang's line format and its noise.
//!
//! SGLang writes `[2026-01-31 09:30:00] message` to standard error, between progress bars that end in
//! a carriage return and leave the next record glued behind them, and pipes tear long records. All
//! of that is reproduced, so that gemmtune's log scanner meets it.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A log that several threads write to. A log that cannot be written is not an error of the server.
pub struct Log(Mutex<Inner>);

struct Inner {
    output: Box<dyn Write + Send>,
    bar_open: bool,
    tear: bool,
    records: usize,
    held: Option<Vec<u8>>,
}

impl Log {
    /// A log to `output`. With `tear`, records are torn as pipes tear them: every third is cut in two
    /// with the next whole record in between.
    pub fn new(output: Box<dyn Write + Send>, tear: bool) -> Self {
        Self(Mutex::new(Inner {
            output,
            bar_open: false,
            tear,
            records: 0,
            held: None,
        }))
    }

    /// Writes a record with the time.
    pub fn line(&self, message: &str) {
        let stamp = stamp(SystemTime::now());
        self.lock()
            .record(format!("[{stamp}] {message}").into_bytes());
    }

    /// Writes a record as it is, as libraries with their own format do.
    pub fn raw(&self, message: &str) {
        self.lock().record(message.as_bytes().to_vec());
    }

    /// Draws a progress bar over the previous one. The last step ends the line; before that the next
    /// record stands behind the bar on the same line.
    pub fn bar(&self, label: &str, done: usize, total: usize, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let rate = done as f64 / seconds.max(1e-3);
        let left = (total - done) as f64 / rate.max(1e-3);
        let text = format!(
            "\r{label}: {:>3}% Completed | {done}/{total} [{}<{}, {rate:5.2}it/s]",
            100 * done / total.max(1),
            minutes(seconds),
            minutes(left),
        );
        let mut inner = self.lock();
        inner.write(text.as_bytes());
        inner.bar_open = done < total;
        if done == total {
            inner.write(b"\n");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let mut inner = self.lock();
        if let Some(mut held) = inner.held.take() {
            held.push(b'\n');
            inner.write(&held);
        }
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Log")
    }
}

impl Inner {
    fn record(&mut self, mut record: Vec<u8>) {
        self.records += 1;
        self.bar_open = false;
        if self.tear && self.held.is_none() && self.records.is_multiple_of(3) {
            self.held = Some(record);
            return;
        }
        if let Some(held) = self.held.take() {
            let cut = held.len() * 2 / 3;
            record.push(b'\n');
            record.splice(0..0, held[..cut].iter().copied());
            record.extend_from_slice(&held[cut..]);
        }
        record.push(b'\n');
        self.write(&record);
    }

    fn write(&mut self, bytes: &[u8]) {
        // One call a record, so that other writers to the same file do not cut in.
        let _ = self
            .output
            .write_all(bytes)
            .and_then(|()| self.output.flush());
    }
}

fn minutes(seconds: f64) -> String {
    let whole = seconds.clamp(0.0, 5999.0) as u64;
    format!("{:02}:{:02}", whole / 60, whole % 60)
}

/// `YYYY-MM-DD HH:MM:SS`, UTC.
fn stamp(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

/// Year, month and day of a day since 1970-01-01, after Howard Hinnant's `civil_from_days`: years run
/// from March, so that the leap day comes last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    /// A writer whose bytes a test reads.
    #[derive(Clone, Default)]
    pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn stamps_are_calendar_dates() {
        let at = |seconds| stamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_827_696), "2000-02-29 12:34:56");
        assert_eq!(at(1_767_225_599), "2025-12-31 23:59:59");
        assert_eq!(at(1_772_323_200), "2026-03-01 00:00:00");
    }

    #[test]
    fn a_record_behind_an_open_bar_is_on_the_same_line() {
        let captured = Captured::default();
        let log = Log::new(Box::new(captured.clone()), false);
        log.bar("Loading", 1, 4, Duration::from_secs(1));
        log.line("glued");
        log.bar("Loading", 4, 4, Duration::from_secs(4));
        log.raw("[aiter] alone");
        let text = captured.text();
        let first = text.split('\n').next().unwrap();
        assert!(
            first.starts_with("\rLoading:  25% Completed | 1/4 [00:01<00:03,  1.00it/s][2"),
            "{first}"
        );
        assert!(first.ends_with("] glued"));
        assert!(text.ends_with("]\n[aiter] alone\n"), "{text}");
    }

    #[test]
    fn tearing_loses_no_byte() {
        let captured = Captured::default();
        let log = Log::new(Box::new(captured.clone()), true);
        for record in ["one", "two", "three333", "four", "five", "sixsixsix"] {
            log.raw(record);
        }
        drop(log);
        assert_eq!(
            captured.text(),
            "one\ntwo\nthreefour\n333\nfive\nsixsixsix\n"
        );
    }
}
