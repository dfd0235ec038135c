//! The charts of the page. Each has a data table beside it with the same content.

use maud::{Markup, html};

use super::model::{HitRate, Roofline, ShapeRow, TimeShare, plain_name};
use super::number::{percent, ratio, significant};
use super::svg::{Frame, Scale, Series, WIDTH, at, axes, chart, label, line, mark, polyline, text};
use crate::compare::{Comparison, MetricResult};
use crate::profile::PhaseProfile;

/// Space above a plot for its legend and the title of the vertical axis.
const HEAD: f64 = 40.0;

/// Units from one row of the interval chart to the next.
const ROW: f64 = 30.0;

/// Average width of a bold letter, at most, at the style sheet's font size of 12 units.
const LETTER: f64 = 7.2;

/// The marks of both arms with their labels, above a plot.
fn legend(before: &str, after: &str) -> Markup {
    let second = WIDTH - 12.0 - 7.0 * after.chars().count() as f64;
    let first = second - 34.0 - 7.0 * before.chars().count() as f64;
    html! {
        g class="legend" {
            (mark(Series::Before, first, 8.0))
            (text("key", "start", (first + 10.0, 12.0), before))
            (mark(Series::After, second, 8.0))
            (text("key", "start", (second + 10.0, 12.0), after))
        }
    }
}

/// Smallest and largest of `values`, widened by `share` of the span.
fn span(values: impl Iterator<Item = f64>, share: f64) -> Option<(f64, f64)> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    (low <= high).then(|| {
        let margin = (high - low) * share;
        (low - margin, high + margin)
    })
}

/// Both arms of every pair: the baseline trial and the tuned trial joined by a line.
pub(super) fn pairs(metric: &MetricResult) -> Option<Markup> {
    let values = metric
        .each
        .iter()
        .flat_map(|pair| [pair.baseline, pair.tuned]);
    let (low, high) = span(values, 0.12)?;
    let frame = Frame {
        left: 54.0,
        right: WIDTH - 8.0,
        top: HEAD,
        bottom: 208.0,
    };
    let y = Scale::linear((low.max(0.0), high), (frame.bottom, frame.top));
    let count = metric.each.len();
    let place = |index: usize| {
        let step = (frame.right - frame.left) / count as f64;
        frame.left + step * (index as f64 + 0.5)
    };
    // At most a dozen labels along the axis.
    let every = count.div_ceil(12);
    let x_ticks: Vec<(f64, String)> = (0..count)
        .step_by(every)
        .map(|index| (place(index), (index + 1).to_string()))
        .collect();
    let y_ticks: Vec<(f64, String)> = y
        .ticks(5)
        .into_iter()
        .map(|tick| (y.place(tick), label(tick)))
        .collect();
    let name = plain_name(metric);
    let summary = format!(
        "{name} of each of {count} pairs. Baseline median {} {unit}, tuned median {} {unit}.",
        significant(metric.baseline, 4),
        significant(metric.tuned, 4),
        unit = metric.unit
    );
    Some(chart(
        246.0,
        &summary,
        &html! {
            (axes(frame, (&x_ticks, "pair"), (&y_ticks, &metric.unit)))
            (legend("baseline", "tuned"))
            @for (index, pair) in metric.each.iter().enumerate() {
                (line("join", (place(index), y.place(pair.baseline)), (place(index), y.place(pair.tuned))))
                (mark(Series::Before, place(index), y.place(pair.baseline)))
                (mark(Series::After, place(index), y.place(pair.tuned)))
            }
        },
    ))
}

/// The ratio of every headline metric with its interval, the noise band hatched around 1.
pub(super) fn intervals(comparison: &Comparison) -> Option<Markup> {
    let rows: Vec<(&MetricResult, f64, f64, f64)> = comparison
        .metrics
        .iter()
        .filter(|metric| metric.decides || metric.headline)
        .filter_map(|metric| {
            let ratio = &metric.ratio;
            Some((metric, ratio.median?, ratio.low?, ratio.high?))
        })
        .collect();
    let (floor, ceiling) = (
        1.0 / (1.0 + comparison.band.width),
        1.0 + comparison.band.width,
    );
    let ends = rows.iter().flat_map(|(_, _, low, high)| [*low, *high]);
    let (low, high) = span(ends, 0.0)?;
    let (low, high) = (low.min(floor), high.max(ceiling));
    // Names are left of the plot and values right of it, so that no line crosses either.
    let name = |metric: &MetricResult| {
        let mark = if metric.decides { " (decides)" } else { "" };
        format!("{}{mark}", plain_name(metric))
    };
    let longest = rows.iter().map(|row| name(row.0).chars().count()).max();
    let frame = Frame {
        left: (LETTER * longest.unwrap_or(0) as f64 + 12.0).min(WIDTH / 2.0),
        right: WIDTH - 52.0,
        top: 22.0,
        bottom: 30.0 + ROW * rows.len() as f64,
    };
    let margin = (high / low).powf(0.06);
    let x = Scale::log((low / margin, high * margin), (frame.left, frame.right));
    let plain = Scale::linear((low / margin, high * margin), (frame.left, frame.right));
    let x_ticks: Vec<(f64, String)> = plain
        .ticks(4)
        .into_iter()
        .map(|tick| (x.place(tick), label(tick)))
        .collect();
    let summary = format!(
        "Ratio of tuned to baseline with its interval for {} metrics, above 1 is better. {}: {}, {} to {}.",
        rows.len(),
        plain_name(rows[0].0),
        ratio(Some(rows[0].1)),
        ratio(Some(rows[0].2)),
        ratio(Some(rows[0].3))
    );
    let title = "ratio; above 1 is better";
    Some(chart(
        frame.bottom + 38.0,
        &summary,
        &html! {
            rect class="band" x=(at(x.place(floor))) y=(at(frame.top))
                width=(at(x.place(ceiling) - x.place(floor))) height=(at(frame.bottom - frame.top)) {}
            (axes(frame, (&x_ticks, title), (&[], "hatched: noise band")))
            (line("one", (x.place(1.0), frame.top), (x.place(1.0), frame.bottom)))
            @for (index, (metric, median, low, high)) in rows.iter().enumerate() {
                @let y = 42.0 + ROW * index as f64;
                @let class = if metric.decides { "whisker decides" } else { "whisker" };
                (text(if metric.decides { "name decides" } else { "name" }, "start", (0.0, y + 4.0), &name(metric)))
                (text("value", "end", (WIDTH, y + 4.0), &ratio(Some(*median))))
                (line(class, (x.place(*low), y), (x.place(*high), y)))
                (line(class, (x.place(*low), y - 5.0), (x.place(*low), y + 5.0)))
                (line(class, (x.place(*high), y - 5.0), (x.place(*high), y + 5.0)))
                @let centre = x.place(*median);
                polygon class=(if metric.decides { "diamond decides" } else { "diamond" })
                    points=(polyline(&[(centre, y - 6.0), (centre + 6.0, y), (centre, y + 6.0), (centre - 6.0, y)])) {}
            }
        },
    ))
}

/// A bar of one or two parts, its label above it, its value to the right.
struct Bar {
    label: String,
    value: String,
    parts: Vec<(&'static str, f64)>,
}

/// Horizontal bars on a scale from 0 to `full`.
fn bars(summary: &str, key: &[(&'static str, &str)], bars: &[Bar], full: f64) -> Markup {
    let x = Scale::linear((0.0, full), (0.0, WIDTH - 76.0));
    let height = 30.0 + 36.0 * bars.len() as f64;
    html! {
        (chart(height, summary, &html! {
            g class="legend" {
                @for (index, (class, words)) in key.iter().enumerate() {
                    @let left = 150.0 * index as f64;
                    rect class={ "bar " (class) } x=(at(left)) y="1" width="22" height="13" {}
                    (text("key", "start", (left + 28.0, 12.0), words))
                }
            }
            @for (index, bar) in bars.iter().enumerate() {
                @let y = 44.0 + 36.0 * index as f64;
                (text("name", "start", (0.0, y), &bar.label))
                rect class="track" x="0" y=(at(y + 5.0)) width=(at(WIDTH - 76.0)) height="13" {}
                @for (part, (class, value)) in bar.parts.iter().enumerate() {
                    @let before: f64 = bar.parts[..part].iter().map(|(_, value)| value).sum();
                    rect class={ "bar " (class) } x=(at(x.place(before))) y=(at(y + 5.0))
                        width=(at(x.place(*value).max(0.0))) height="13" {}
                }
                (text("value", "end", (WIDTH, y + 16.0), &bar.value))
            }
        }))
    }
}

/// Share of GEMM time by (N, K), decode against prefill.
pub(super) fn time_shares(shares: &[TimeShare]) -> Option<Markup> {
    let largest = shares.first()?;
    let rows: Vec<Bar> = shares
        .iter()
        .take(10)
        .map(|share| Bar {
            label: format!("N {} × K {}", share.n, share.k),
            value: percent(share.decode + share.prefill),
            parts: vec![("decode", share.decode), ("prefill", share.prefill)],
        })
        .collect();
    let summary = format!(
        "Share of GEMM time by weight. Largest: N {} by K {} with {}, of which {} in decode.",
        largest.n,
        largest.k,
        percent(largest.decode + largest.prefill),
        percent(largest.decode)
    );
    let full = largest.decode + largest.prefill;
    let key = [("decode", "decode"), ("prefill", "prefill")];
    Some(bars(&summary, &key, &rows, full))
}

/// How the time of a step is spent: a bar for each operation, and one for idle time.
pub(super) fn step(phase: &PhaseProfile) -> Option<Markup> {
    let idle = phase.idle_us / phase.step_us;
    let parts = phase.operations.iter();
    let parts = parts.map(|part| {
        (
            part.operation.name(),
            part.share,
            phase.tunes(part.operation),
        )
    });
    let all: Vec<(&str, f64, bool)> = parts.chain([("idle", idle, false)]).collect();
    let largest = all.iter().max_by(|one, other| one.1.total_cmp(&other.1))?;
    let rows: Vec<Bar> = all
        .iter()
        .map(|&(name, share, tunable)| Bar {
            label: name.to_owned(),
            value: percent(share),
            parts: vec![(if tunable { "after" } else { "before" }, share)],
        })
        .collect();
    let summary = format!(
        "Share of {} by operation. Largest: {} with {}.",
        phase.phase.step(),
        largest.0,
        percent(largest.1)
    );
    let key = [("after", "tuned"), ("before", "the rest")];
    Some(bars(&summary, &key, &rows, 1.0))
}

/// Hit rates before and after.
pub(super) fn hit_rates(rates: &[HitRate]) -> Option<Markup> {
    let first = rates.first()?;
    let rows: Vec<Bar> = rates
        .iter()
        .flat_map(|rate| {
            let measured = [("before", rate.before), ("after", Some(rate.after))];
            measured.into_iter().filter_map(|(when, share)| {
                let share = share?;
                Some(Bar {
                    label: format!("{}, {when}", rate.of),
                    value: percent(share),
                    parts: vec![(when, share)],
                })
            })
        })
        .collect();
    let summary = format!(
        "Share served by the table. {}: {} before, {} after.",
        first.of,
        first
            .before
            .map_or_else(|| "not measured".to_owned(), percent),
        percent(first.after)
    );
    Some(bars(
        &summary,
        &[("before", "before"), ("after", "after")],
        &rows,
        1.0,
    ))
}

/// Time of each M of one (N, K), before and after, on two logarithmic axes.
pub(super) fn shape_times(rows: &[&ShapeRow]) -> Option<Markup> {
    let points = |of: fn(&ShapeRow) -> Option<f64>| -> Vec<(f64, f64)> {
        rows.iter()
            .filter_map(|row| Some((f64::from(row.m), of(row).filter(|us| *us > 0.0)?)))
            .collect()
    };
    let before = points(|row| row.before.as_ref().map(|timing| timing.us));
    let after = points(|row| row.after.as_ref().map(|timing| timing.us));
    let all = || before.iter().chain(&after);
    let (least, most) = span(all().map(|point| point.0), 0.0)?;
    let (fast, slow) = span(all().map(|point| point.1), 0.0)?;
    let frame = Frame {
        left: 48.0,
        right: WIDTH - 12.0,
        top: HEAD,
        bottom: 200.0,
    };
    let x = Scale::log((least, most), (frame.left + 8.0, frame.right - 8.0));
    let y = Scale::log((fast / 1.25, slow * 1.25), (frame.bottom, frame.top));
    let place = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points
            .iter()
            .map(|(m, us)| (x.place(*m), y.place(*us)))
            .collect()
    };
    let (before, after) = (place(&before), place(&after));
    let ticks = |scale: &Scale, count| -> Vec<(f64, String)> {
        scale
            .ticks(count)
            .into_iter()
            .map(|tick| (scale.place(tick), label(tick)))
            .collect()
    };
    let mut tokens: Vec<f64> = rows.iter().map(|row| f64::from(row.m)).collect();
    tokens.dedup();
    let x_ticks = if tokens.len() <= 11 {
        let tick = |m: f64| (x.place(m), label(m));
        tokens.into_iter().map(tick).collect()
    } else {
        ticks(&x, 10)
    };
    let row = rows.first()?;
    let summary = format!(
        "Time per call in microseconds over M for N {} by K {}, before and after, {} values of M.",
        row.n,
        row.k,
        rows.len()
    );
    Some(chart(
        238.0,
        &summary,
        &html! {
            (axes(frame, (&x_ticks, "M (tokens)"), (&ticks(&y, 7), "µs a call")))
            (legend("before", "after"))
            polyline class="before" points=(polyline(&before)) {}
            polyline class="after" points=(polyline(&after)) {}
            @for point in &before { (mark(Series::Before, point.0, point.1)) }
            @for point in &after { (mark(Series::After, point.0, point.1)) }
        },
    ))
}

/// Roofline position of each shape, before and after.
pub(super) fn roofline(limits: &Roofline, rows: &[ShapeRow]) -> Option<Markup> {
    let rate = |row: &ShapeRow, us: f64| (us > 0.0).then(|| row.flops() / us / 1e6);
    let points = |of: fn(&ShapeRow) -> Option<f64>| -> Vec<(f64, f64)> {
        rows.iter()
            .filter_map(|row| Some((row.flops() / row.bytes(), rate(row, of(row)?)?)))
            .collect()
    };
    let before = points(|row| row.before.as_ref().map(|timing| timing.us));
    let after = points(|row| row.after.as_ref().map(|timing| timing.us));
    if limits.tflops <= 0.0 || limits.gbps <= 0.0 {
        return None;
    }
    let all = || before.iter().chain(&after);
    let (thin, thick) = span(all().map(|point| point.0), 0.0)?;
    let (slow, fast) = span(all().map(|point| point.1), 0.0)?;
    // FLOP per byte at which memory and arithmetic take equally long.
    let ridge = limits.tflops * 1e3 / limits.gbps;
    let (thin, thick) = (thin / 1.6, (thick * 1.6).max(ridge * 2.0));
    let reach = |intensity: f64| (intensity * limits.gbps / 1e3).min(limits.tflops);
    let frame = Frame {
        left: 48.0,
        right: WIDTH - 12.0,
        top: HEAD,
        bottom: 220.0,
    };
    let x = Scale::log((thin, thick), (frame.left, frame.right));
    let y = Scale::log(
        (slow.min(reach(thin)) / 1.6, fast.max(limits.tflops) * 1.6),
        (frame.bottom, frame.top),
    );
    let place = |(intensity, rate): &(f64, f64)| (x.place(*intensity), y.place(*rate));
    let roof = [thin, ridge.clamp(thin, thick), thick]
        .map(|intensity| place(&(intensity, reach(intensity))));
    let ticks = |scale: &Scale| -> Vec<(f64, String)> {
        scale
            .ticks(8)
            .into_iter()
            .map(|tick| (scale.place(tick), label(tick)))
            .collect()
    };
    // Where the slope is labelled: two thirds of the way up, on the logarithmic scale.
    let middle = thin * (ridge.clamp(thin, thick) / thin).powf(0.67);
    let slope = place(&(middle, reach(middle)));
    let summary = format!(
        "Rate against arithmetic intensity of {} shapes under {} TFLOP/s and {} GB/s.",
        rows.len(),
        significant(Some(limits.tflops), 4),
        significant(Some(limits.gbps), 4)
    );
    Some(chart(
        258.0,
        &summary,
        &html! {
            (axes(frame, (&ticks(&x), "FLOP per byte"), (&ticks(&y), "TFLOP/s")))
            (legend("before", "after"))
            polyline class="roof" points=(polyline(&roof)) {}
            (text("key", "end", (frame.right, roof[2].1 - 6.0),
                &format!("{} TFLOP/s", significant(Some(limits.tflops), 4))))
            (text("key", "end", (slope.0 - 8.0, slope.1 - 4.0),
                &format!("{} GB/s", significant(Some(limits.gbps), 4))))
            @for point in &before { @let (x, y) = place(point); (mark(Series::Before, x, y)) }
            @for point in &after { @let (x, y) = place(point); (mark(Series::After, x, y)) }
        },
    ))
}
