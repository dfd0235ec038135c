//! The display of a tuning run: one line for each finished shape, and on a terminal a line below them with the best
//! so far and the time left.

use std::fmt::Display;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::printer::Printer;
use crate::tune::event::busy_shares;
use crate::tune::protocol::Candidate;
use crate::tune::results::Row;
use crate::tune::task::Task;
use crate::tune::{TuneEvent, TuneOutcome};

/// Displays a tuning run on standard error.
pub struct TuneProgress<'a> {
    printer: &'a Printer,
    bar: ProgressBar,
    left: usize,
    eta_s: Option<f64>,
}

impl<'a> TuneProgress<'a> {
    /// Draws a live line if `terminal`, else plain lines only.
    pub fn new(printer: &'a Printer, terminal: bool) -> Self {
        let bar = ProgressBar::with_draw_target(
            None,
            if terminal {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        Self {
            printer,
            bar,
            left: 0,
            eta_s: None,
        }
    }

    pub fn tell<P: Display>(&mut self, event: &TuneEvent<P>) {
        match event {
            TuneEvent::Started {
                device,
                workers,
                shapes,
                resumed,
                races_at_most,
            } => {
                self.left = *races_at_most;
                let earlier = match resumed {
                    0 => String::new(),
                    count => format!(", {count} done earlier"),
                };
                let workers = match workers {
                    1 => String::new(),
                    count => format!(" x {count}"),
                };
                self.line(&format!(
                    "{} ({}){workers}: {shapes} shapes{earlier}",
                    device.name, device.arch
                ));
            }
            TuneEvent::Leads {
                shape,
                us,
                entrants,
            } => {
                let eta = self
                    .eta_s
                    .map_or_else(String::new, |eta| format!(", {} to go", seconds(eta)));
                self.bar.set_message(format!(
                    "{shape}: best so far {us:.1} us of {entrants}; at most {} left{eta}",
                    self.left
                ));
                self.bar.tick();
            }
            TuneEvent::Finished {
                row,
                done,
                left_at_most,
                eta_s,
            } => {
                self.left = *left_at_most;
                self.eta_s = Some(*eta_s);
                let to_go = match left_at_most {
                    0 => String::new(),
                    _ => format!(", {} to go", seconds(*eta_s)),
                };
                self.line(&format!(
                    "[{done}/{}] {}{to_go}",
                    done + left_at_most,
                    sentence(row)
                ));
            }
            TuneEvent::Failed(failed) => {
                self.warn(&format!("{}: no winner, {}", failed.shape, failed.reason));
            }
            TuneEvent::Quarantined(entry) => self.warn(&format!(
                "{}: {} is quarantined: {}",
                entry.shape,
                named(&entry.candidate),
                entry.evidence
            )),
            TuneEvent::WorkerRestarted { worker, reason } => {
                self.warn(&format!("worker {worker} was restarted: {reason}"));
            }
            TuneEvent::DeviceLost { worker, reason } => {
                self.warn(&format!("worker {worker} is lost: {reason}"));
            }
            TuneEvent::Batch {
                done,
                of,
                left_at_most,
                eta_s,
            } => {
                self.left = *left_at_most;
                self.eta_s = eta_s.or(self.eta_s);
                let eta = self
                    .eta_s
                    .map_or_else(String::new, |eta| format!(", {} to go", seconds(eta)));
                self.bar.set_message(format!(
                    "{done} of {of} candidates timed; at most {left_at_most} shapes left{eta}"
                ));
                self.bar.tick();
            }
            TuneEvent::Remark { text } => self.line(text),
            TuneEvent::Wrote { path } => self.line(&format!("wrote {path}")),
        }
    }

    /// Removes the live line.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Prints how the run ended.
    pub fn summary<P: Task>(printer: &Printer, outcome: &TuneOutcome<P>) {
        let won: Vec<&Row<P>> = outcome
            .rows
            .iter()
            .filter(|row| !row.incumbent_kept)
            .collect();
        let gains: Vec<f64> = won.iter().filter_map(|row| gain(row)).collect();
        let mean = if gains.is_empty() {
            String::new()
        } else {
            let log: f64 = gains.iter().map(|gain| gain.ln()).sum();
            format!(
                ", {:.2}x in geometric mean",
                (log / gains.len() as f64).exp()
            )
        };
        let busy = if let Some(shares) = busy_shares(&outcome.devices) {
            format!("; {shares}")
        } else if outcome.active_s > 0.0 {
            format!(
                "; device busy {:.0} % of the search",
                100.0 * outcome.busy_s / outcome.active_s
            )
        } else {
            String::new()
        };
        printer.say(format!(
            "{} of {} shapes are faster{mean}; the incumbent stays for {}; {} in {}{busy}",
            won.len(),
            outcome.rows.len(),
            outcome.rows.len() - won.len(),
            match outcome.quarantined.len() {
                0 => "nothing quarantined".to_owned(),
                count => format!("{count} candidates quarantined"),
            },
            seconds(outcome.seconds)
        ));
        for remark in &outcome.remarks {
            printer.say(remark);
        }
        if let Some(remark) = outcome.clocks.remark() {
            printer.warn(remark);
        }
        if !outcome.served_by_neighbours.is_empty() {
            printer.say(format!(
                "{} shapes are served by the row of a neighbouring M",
                outcome.served_by_neighbours.len()
            ));
        }
        if !outcome.not_reached.is_empty() && !outcome.interrupted {
            printer.warn(format!(
                "{} shapes were not reached and keep what serves them; run the same command again to go on",
                outcome.not_reached.len()
            ));
        }
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| self.printer.say(text));
    }

    fn warn(&self, text: &str) {
        self.bar.suspend(|| self.printer.warn(text));
    }
}

/// How much faster than the incumbent, where that is known.
fn gain<P>(row: &Row<P>) -> Option<f64> {
    row.incumbent_us.map(|incumbent| incumbent / row.us)
}

fn sentence<P: Display>(row: &Row<P>) -> String {
    let what = match (row.incumbent_kept, row.incumbent_us) {
        (true, _) => "the incumbent stays".to_owned(),
        (false, Some(before)) => format!(
            "was {before:.1} us, {:.2}x by {}",
            before / row.us,
            named(&row.candidate)
        ),
        (false, None) => format!("by {}", named(&row.candidate)),
    };
    format!(
        "{}: {:.1} us, {what}; {} timed in {}",
        row.shape,
        row.us,
        row.timed,
        seconds(row.busy_s)
    )
}

/// A candidate in a few words: its name, or its settings.
fn named(candidate: &Candidate) -> String {
    match candidate["kernelName"].as_str() {
        Some(name) => match candidate["splitK"].as_i64() {
            Some(split) if split > 0 => format!("{name} splitK={split}"),
            _ => name.to_owned(),
        },
        None => candidate.to_string(),
    }
}

fn seconds(seconds: f64) -> String {
    match seconds {
        short if short < 10.0 => format!("{short:.1} s"),
        short if short < 100.0 => format!("{short:.0} s"),
        long if long < 5400.0 => format!("{:.0} min", long / 60.0),
        long => format!("{:.1} h", long / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_named_in_few_words() {
        let kernel = serde_json::json!({"kernelId": 3, "splitK": 2, "kernelName": "tile_m8"});
        assert_eq!(named(&kernel), "tile_m8 splitK=2");
        let settings = serde_json::json!({"BLOCK_SIZE_M": 16});
        assert_eq!(named(&settings), "{\"BLOCK_SIZE_M\":16}");
    }

    #[test]
    fn times_to_go_are_read_at_a_glance() {
        assert_eq!(
            [3.25, 47.0, 150.0, 9000.0].map(seconds),
            ["3.2 s", "47 s", "2 min", "2.5 h"].map(str::to_owned)
        );
    }
}
