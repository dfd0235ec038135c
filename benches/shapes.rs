//! Harvesting a log against counting its lines: same file, same buffer, alternating; on one core, and as `gemmtune
//! shapes` does it, in sections side by side.
//!
//! `cargo bench --bench shapes -- FILE [ROUNDS]`; `benches/shapes.sh` makes the file and adds mawk and Python. The best of
//! the rounds counts, because other work on the machine only ever adds time.

use std::io::Read as _;
use std::time::{Duration, Instant};

use gemmtune::log::LogSummary;
use gemmtune::log::sections::{SECTION_MIN, scan_file, sections_here};
use gemmtune::log::window::BUFFER;

fn count_lines(path: &str) -> std::io::Result<u64> {
    let mut file = fs_err::File::open(path)?;
    let mut buffer = vec![0; BUFFER];
    let mut lines = 0;
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(lines);
        }
        lines += memchr::memchr_iter(b'\n', &buffer[..length]).count() as u64;
    }
}

fn log_summary(path: &str, sections: usize) -> std::io::Result<LogSummary> {
    let mut log_summary = LogSummary::default();
    scan_file(
        path.into(),
        sections,
        SECTION_MIN,
        &mut log_summary,
        &|_| {},
    )?;
    Ok(log_summary)
}

fn timed<T>(best: &mut Duration, work: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    let start = Instant::now();
    let result = work()?;
    *best = (*best).min(start.elapsed());
    Ok(result)
}

#[expect(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]
fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let Some(path) = arguments.next() else {
        println!("no file given: see benches/shapes.sh");
        return Ok(());
    };
    let rounds = arguments
        .next()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(7);
    let sections = sections_here();
    let mut counting = Duration::MAX;
    let (mut on_one, mut on_all) = (Duration::MAX, Duration::MAX);
    let mut found = LogSummary::default();
    let mut lines = 0;
    for _ in 0..rounds {
        lines = timed(&mut counting, || count_lines(&path))?;
        found = timed(&mut on_one, || log_summary(&path, 1))?;
        timed(&mut on_all, || log_summary(&path, sections))?;
    }
    let bytes = found.bytes as f64;
    let report = |name: &str, time: Duration, what: String| {
        let seconds = time.as_secs_f64();
        println!(
            "{name:<28} {seconds:>7.3} s {:>6.2} GB/s {:>5.2}  {what}",
            bytes / seconds / 1e9,
            seconds / counting.as_secs_f64(),
        );
    };
    let distinct = found.shapes(None).len();
    println!("{:<28} {:>9} {:>11} {:>5}", "", "best", "", "ratio");
    report("counting newlines", counting, format!("{lines} lines"));
    let what = format!("{} records, {distinct} distinct", found.records());
    report("gemmtune shapes, one core", on_one, what);
    let name = format!("gemmtune shapes, {sections} sections");
    report(&name, on_all, String::new());
    Ok(())
}
