//! Progress of a run on a terminal, or as plain lines elsewhere. The only user of `indicatif`.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::eta::RunEta;
use super::printer::Printer;
use crate::run::event::{Event, Notice, Progress};
use crate::run::stage::Stage;
use crate::workload::duration::{in_whole_seconds, spoken};

/// Displays a run: one line for each event, and on a terminal a live line below them.
#[derive(Debug)]
pub struct RunProgress<'a> {
    printer: &'a Printer,
    live: Option<ProgressBar>,
    last: String,
    eta: Option<RunEta>,
}

impl<'a> RunProgress<'a> {
    /// A display on standard error; with `eta` including the time left.
    pub(super) fn new(printer: &'a Printer, eta: Option<RunEta>) -> Self {
        let live = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            printer,
            live,
            last: String::new(),
            eta,
        }
    }

    pub fn show(&mut self, notice: &Notice) {
        let now = Instant::now();
        if let Some(eta) = &mut self.eta {
            eta.take(notice, now);
        }
        match notice {
            Notice::Recorded(event) => {
                if let Some(line) = line_of(event) {
                    self.print(&line);
                }
            }
            Notice::Remark(text) => self.print(&format!("          {text}")),
            Notice::Progress(progress) => {
                let left = self.eta.as_ref().and_then(|eta| eta.left(now));
                let line = progress_line(progress, left);
                match &self.live {
                    Some(bar) => bar.set_message(self.printer.plain(&line)),
                    // Without a terminal only a change of activity is printed.
                    None if !progress.passing && progress.doing != self.last => self.print(&line),
                    None => {}
                }
                self.last.clone_from(&progress.doing);
            }
        }
    }

    fn print(&self, line: &str) {
        match &self.live {
            Some(bar) => bar.suspend(|| self.printer.say(line)),
            None => self.printer.say(line),
        }
    }
}

impl Drop for RunProgress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
        }
    }
}

fn line_of(event: &Event) -> Option<String> {
    match event {
        Event::StageFinished {
            stage,
            seconds,
            summary,
            ..
        } => Some(format!("{stage:<9} {summary} ({})", spoken(*seconds))),
        Event::StageFailed { stage, reason, .. } => Some(format!("{stage:<9} FAILED: {reason}")),
        Event::Undone { reason } => Some(format!("{:<9} deployment undone: {reason}", "undo")),
        Event::RunResumed { .. } => Some("resuming".to_owned()),
        Event::Interrupted { stage } => Some(format!("{stage:<9} interrupted")),
        Event::RunStarted { .. }
        | Event::Identified { .. }
        | Event::StageStarted { .. }
        | Event::TrialStarted { .. }
        | Event::TrialFinished { .. }
        | Event::TrialFailed { .. } => None,
    }
}

fn progress_line(progress: &Progress, run: Option<f64>) -> String {
    let mut line = format!("{:<9} ", progress.stage.name());
    if let Some((done, all)) = progress.steps {
        line.push_str(&format_args!("{done}/{all} ").to_string());
    }
    line.push_str(&progress.doing);
    line.push_str(&time_left(progress, run));
    line
}

/// The time left in the run if it is known, else in the stage; for tuning both, because it ends early when a budget
/// does.
fn time_left(progress: &Progress, run: Option<f64>) -> String {
    let of_run = run.map(|seconds| format!("about {} of the run", in_whole_seconds(seconds)));
    let of_stage = progress
        .eta_seconds
        .filter(|_| of_run.is_none() || progress.stage == Stage::Tune)
        .map(|seconds| format!("about {} of this stage", in_whole_seconds(seconds)));
    let parts: Vec<String> = of_stage.into_iter().chain(of_run).collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!(" ({} left)", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_progress_line_counts_and_estimates() {
        let run = 245.0;
        let mut progress = Progress {
            stage: Stage::Compare,
            doing: "tuned: running the benchmark".to_owned(),
            steps: Some((3, 12)),
            eta_seconds: Some(65.0),
            passing: false,
        };
        let mut lines = vec![
            progress_line(&progress, None),
            progress_line(&progress, Some(run)),
        ];
        progress.stage = Stage::Tune;
        lines.push(progress_line(&progress, Some(run)));
        progress.stage = Stage::Capture;
        progress.eta_seconds = None;
        lines.push(progress_line(&progress, None));
        lines.push(progress_line(&progress, Some(run)));
        insta::assert_snapshot!(lines.join("\n"), @"
        compare   3/12 tuned: running the benchmark (about 1 min 05 s of this stage left)
        compare   3/12 tuned: running the benchmark (about 4 min 05 s of the run left)
        tune      3/12 tuned: running the benchmark (about 1 min 05 s of this stage, about 4 min 05 s of the run left)
        capture   3/12 tuned: running the benchmark
        capture   3/12 tuned: running the benchmark (about 4 min 05 s of the run left)
        ");
    }
}
