//! `gemmtune compare`: two sets of benchmark results, one verdict.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use camino::Utf8PathBuf;

use super::printer::Printer;
use crate::bench::result::{self, ReadError};
use crate::compare::{
    self, Band, Comparison, LoadComparison, METRICS, MetricResult, Question, Trial, Unit, Verdict,
    metric,
};
use crate::run::error::{Error, ErrorKind};

/// Arguments of `gemmtune compare`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 0: better or same. 16: worse, inconclusive, or arms that differ in more \
    than the tuning. 2: a file cannot be read or lacks the metric."
)]
pub struct CompareArgs {
    /// Result files of the untuned arm (bench_serving, `vllm bench serve`, InferenceX), in the order they were run
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    baseline: Vec<Utf8PathBuf>,

    /// Result files of the tuned arm, in the same order: the i-th trial meets the i-th
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    tuned: Vec<Utf8PathBuf>,

    /// Result files of untuned against untuned: successive trials show the noise band
    #[arg(long, num_args = 1.., value_name = "FILE", conflicts_with = "band")]
    aa: Vec<Utf8PathBuf>,

    /// Noise band in percent, instead of A/A files [default: 1]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    band: Option<f64>,

    /// Metric that decides; choose it before the trials run
    #[arg(long, default_value = metric::DEFAULT, value_name = "METRIC")]
    metric: String,

    /// What one trial is: a line where an arm has one file, else a file, or the i-th file of each load
    #[arg(long, default_value = "auto", value_name = "UNIT")]
    unit: UnitArg,

    /// Requests each run was asked for, where the files do not say
    #[arg(long, value_name = "COUNT")]
    num_prompts: Option<u64>,

    /// Key of an argument or of server_info whose difference is the tuning itself (repeatable)
    #[arg(long, value_name = "KEY")]
    expect: Vec<String>,

    /// Give a verdict although the arms differ in more than the tuning
    #[arg(long)]
    allow_unfair: bool,

    /// Show every metric, not only the usual ones
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum UnitArg {
    /// A line where an arm has one file, else a file; where each file holds one load of several, the i-th file of each
    Auto,
    /// Each file, whatever its lines
    File,
    /// Each line
    Line,
}

impl From<UnitArg> for Unit {
    fn from(unit: UnitArg) -> Self {
        match unit {
            UnitArg::Auto => Self::Auto,
            UnitArg::File => Self::File,
            UnitArg::Line => Self::Line,
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(percent) if (0.0..100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("expected a percentage from 0 to below 100, for example 1.5".to_owned()),
    }
}

/// Reads and compares both arms, and prints the verdict; an error of kind 16 unless it is better or the same.
pub fn run(args: &CompareArgs, printer: &Printer) -> Result<(), Error> {
    let Some(metric) = metric::named(&args.metric) else {
        let known: Vec<&str> = METRICS.iter().map(|metric| metric.key).collect();
        return Err(Error::new(
            ErrorKind::Usage,
            format!("`{}` is no metric with a known direction", args.metric),
        )
        .hint(format!("use one of: {}", known.join(", "))));
    };
    let unit = Unit::from(args.unit);
    let baseline = read_arm(&args.baseline, unit)?;
    let tuned = read_arm(&args.tuned, unit)?;
    let band = if let Some(width) = args.band {
        Band::chosen(width)
    } else if args.aa.is_empty() {
        Band::default()
    } else {
        Band::from_aa(&read_arm(&args.aa, unit)?, metric).ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format!(
                    "the A/A files hold no pair of trials with a usable {}",
                    metric.key
                ),
            )
            .hint("give at least two untuned trials to --aa, or a band with --band")
        })?
    };
    let comparison = compare::compare(&Question {
        baseline: &baseline,
        tuned: &tuned,
        metric,
        band,
        expected: &args.expect,
        requests: args.num_prompts,
        allow_unfair: args.allow_unfair,
    })
    .map_err(|error| {
        Error::to(ErrorKind::Usage, "answer", error)
            .hint("choose the deciding metric with --metric; --help lists the forms of input")
    })?;
    if printer.is_json() {
        printer.json(&comparison)?;
    } else {
        printer.data(text(&comparison, args.all).as_bytes())?;
    }
    outcome(&comparison, args.allow_unfair)
}

fn read_arm(files: &[Utf8PathBuf], unit: Unit) -> Result<Vec<Trial>, Error> {
    let mut given = BTreeSet::new();
    for file in files {
        let place = file.canonicalize_utf8().unwrap_or_else(|_| file.clone());
        if !given.insert(place) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("`{file}` is given twice for one arm: a trial cannot count as two"),
            )
            .hint("give each server start's file once"));
        }
    }
    let files = files
        .iter()
        .map(|file| result::read(file))
        .collect::<Result<Vec<_>, ReadError>>()
        .map_err(|error| {
            Error::to(ErrorKind::Usage, "compare", error)
                .hint("each line must be one run as `bench_serving --output-file` or `gemmtune bench -o` writes it")
        })?;
    Ok(compare::trials(files, unit))
}

/// Success for better and same, an error of kind 16 for the rest.
fn outcome(comparison: &Comparison, allow_unfair: bool) -> Result<(), Error> {
    if matches!(comparison.verdict, Verdict::Better | Verdict::Same) {
        return Ok(());
    }
    let failure = Error::new(
        ErrorKind::NotBetter,
        format!("{}: {}", comparison.verdict, comparison.because),
    );
    Err(if !comparison.unfair.is_empty() && !allow_unfair {
        failure.hint(
            "make the arms alike and run them again; name a difference that is the tuning itself with \
             --expect KEY, or insist with --allow-unfair",
        )
    } else if comparison.more_pairs_needed > 0 {
        let trials = match comparison.more_pairs_needed {
            1 => "one more trial".to_owned(),
            more => format!("{more} more trials"),
        };
        failure.hint(format!(
            "run {trials} of each arm, alternating, and give all files again"
        ))
    } else if comparison.verdict == Verdict::Inconclusive {
        failure
            .hint("more pairs narrow the interval; A/A trials given to --aa measure the noise band")
    } else {
        failure.hint("`gemmtune undo` takes a deployed table back")
    })
}

/// The table for display.
fn text(comparison: &Comparison, all: bool) -> String {
    let mut text = format!(
        "{}: {} ({})\n",
        comparison.metric, comparison.verdict, comparison.because
    );
    let _ = writeln!(
        text,
        "band: {:.2} % ({})\n",
        comparison.band.width * 100.0,
        comparison.band.source
    );
    let mut rows = vec![
        [
            "metric", "baseline", "tuned", "ratio", "interval", "reading",
        ]
        .map(str::to_owned),
    ];
    rows.extend(
        comparison
            .metrics
            .iter()
            .filter(|metric| all || metric.decides || metric.headline)
            .map(|metric| row(metric, comparison.pairs)),
    );
    text.push_str(&table(&rows));
    let _ = writeln!(text, "\n{}", legend(comparison));
    text.push_str(&loads(comparison));
    let problems = comparison
        .metrics
        .iter()
        .filter(|metric| !metric.decides)
        .flat_map(|metric| &metric.problems);
    list(&mut text, "unfair", comparison.unfair.iter());
    list(
        &mut text,
        "expected",
        comparison.expected_differences.iter(),
    );
    list(&mut text, "left out of other metrics", problems);
    list(&mut text, "note", comparison.notes.iter());
    text
}

/// Each of several loads by its own deciding metric.
fn loads(comparison: &Comparison) -> String {
    if comparison.loads.is_empty() {
        return String::new();
    }
    let head = ["load", "metric", "ratio", "interval", "pairs", "verdict"].map(str::to_owned);
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), significant);
    let line = |load: &LoadComparison| {
        let own = &load.comparison;
        [
            load.load.clone(),
            own.metric.clone(),
            number(own.ratio.median),
            format!("{} to {}", number(own.ratio.low), number(own.ratio.high)),
            own.pairs.to_string(),
            own.verdict.to_string(),
        ]
    };
    let mut rows = vec![head];
    rows.extend(comparison.loads.iter().map(line));
    format!("\nEach load on its own:\n{}", table(&rows))
}

/// What the columns mean, including what would be the same in every row, so that the table fits a usual screen.
fn legend(comparison: &Comparison) -> String {
    let pairs = match comparison.pairs {
        1 => "1 pair".to_owned(),
        pairs => format!("{pairs} pairs"),
    };
    let confidence = comparison.ratio.confidence.map_or_else(String::new, |at| {
        format!("; each interval holds the median with {:.1} %", at * 100.0)
    });
    format!("{pairs}{confidence}.\nA ratio above 1 means that the tuned arm is better; * decides.")
}

/// A metric's row; `pairs` is the number of pairs of the deciding metric.
fn row(metric: &MetricResult, pairs: usize) -> [String; 6] {
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), significant);
    let ratio =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.4}"));
    let mark = if metric.decides { "*" } else { "" };
    // Names of times end with their unit.
    let unit = if metric.metric.ends_with(&format!("_{}", metric.unit)) {
        String::new()
    } else {
        format!(" {}", metric.unit)
    };
    [
        format!("{}{mark}{unit}", metric.metric),
        number(metric.baseline),
        number(metric.tuned),
        ratio(metric.ratio.median),
        format!(
            "{} to {}",
            ratio(metric.ratio.low),
            ratio(metric.ratio.high)
        ),
        if metric.pairs == pairs {
            metric.reading.to_string()
        } else {
            format!("{} ({} pairs)", metric.reading, metric.pairs)
        },
    ]
}

/// Five significant digits, enough to show a difference of 0.1 %.
fn significant(value: f64) -> String {
    let digits = if value > 0.0 {
        (4.0 - value.log10().floor()).clamp(0.0, 6.0) as usize
    } else {
        0
    };
    format!("{value:.digits$}")
}

/// Columns as wide as their widest cell, the first to the left, numbers to the right.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if column == 0 {
                write!(line, "{cell:<width$}")
            } else {
                write!(line, "  {cell:>width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// At most twelve lines under one heading; JSON has them all.
fn list<'a>(text: &mut String, heading: &str, lines: impl Iterator<Item = &'a String>) {
    const SHOWN: usize = 12;
    let lines: Vec<&String> = lines.collect();
    for line in lines.iter().take(SHOWN) {
        let _ = writeln!(text, "{heading}: {line}");
    }
    if lines.len() > SHOWN {
        let _ = writeln!(
            text,
            "{heading}: and {} more (--json lists all)",
            lines.len() - SHOWN
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_five_digits() {
        assert_eq!(significant(2678.0297), "2678.0");
        assert_eq!(significant(9.0410), "9.0410");
        assert_eq!(significant(123_456.7), "123457");
        assert_eq!(significant(0.0), "0");
    }

    #[test]
    fn a_percentage_reads_with_and_without_its_sign() {
        assert_eq!(percent("1.5"), Ok(0.015));
        assert_eq!(percent("2%"), Ok(0.02));
        assert!(percent("100").is_err());
        assert!(percent("-1").is_err());
        assert!(percent("NaN").is_err());
    }
}
