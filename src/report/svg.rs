//! Scales, axes and marks for the charts: inline SVG coloured by the page's own CSS variables.
//!
//! A chart is drawn in a frame of [`WIDTH`] units that is about as wide as a phone, so that its text
//! stays readable there. Series differ by the shape of their mark and by dash or hatch; colour only
//! repeats it.

use maud::{Markup, html};

/// Width of every chart in its own units.
pub(super) const WIDTH: f64 = 420.0;

/// Width of a digit, at most, at the style sheet's font size of 12 units.
const DIGIT: f64 = 7.6;

/// Linear or logarithmic mapping from values to coordinates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    from: (f64, f64),
    to: (f64, f64),
    log: bool,
}

impl Scale {
    /// Maps values `from` (low, high) to coordinates `to`. An empty span is widened around its value.
    pub(super) fn linear(from: (f64, f64), to: (f64, f64)) -> Self {
        let (low, high) = from;
        let from = if high > low {
            from
        } else {
            let margin = (low.abs() * 0.05).max(1e-9);
            (low - margin, high + margin)
        };
        Self {
            from,
            to,
            log: false,
        }
    }

    /// The same on a logarithmic scale; both ends must be above 0.
    pub(super) fn log(from: (f64, f64), to: (f64, f64)) -> Self {
        let (low, high) = (from.0.max(f64::MIN_POSITIVE), from.1.max(f64::MIN_POSITIVE));
        let from = if high > low {
            (low, high)
        } else {
            (low / 1.5, high * 1.5)
        };
        Self {
            from,
            to,
            log: true,
        }
    }

    /// The coordinate of `value`.
    pub(super) fn place(&self, value: f64) -> f64 {
        let map = |value: f64| if self.log { value.ln() } else { value };
        let (low, high) = (map(self.from.0), map(self.from.1));
        let share = (map(value) - low) / (high - low);
        self.to.0 + share * (self.to.1 - self.to.0)
    }

    /// Round values for ticks: about `count` of them on a linear scale; 1, 2, 5 per decade on a
    /// logarithmic one, thinned to powers of ten when there are many.
    pub(super) fn ticks(&self, count: usize) -> Vec<f64> {
        if self.log {
            let ticks = |steps: &[f64]| -> Vec<f64> {
                let first = self.from.0.log10().floor() as i32;
                let last = self.from.1.log10().ceil() as i32;
                (first..=last)
                    .flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)))
                    .filter(|tick| (self.from.0 * 0.999..=self.from.1 * 1.001).contains(tick))
                    .collect()
            };
            let fine = ticks(&[1.0, 2.0, 5.0]);
            return if fine.len() > count {
                ticks(&[1.0])
            } else {
                fine
            };
        }
        let step = (self.from.1 - self.from.0) / count.max(1) as f64;
        let power = 10_f64.powf(step.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .map(|factor| factor * power)
            .into_iter()
            .find(|candidate| *candidate >= step * 0.999)
            .unwrap_or(10.0 * power);
        let first = (self.from.0 / step).ceil() as i64;
        let last = (self.from.1 / step + 1e-9).floor() as i64;
        (first..=last).map(|index| index as f64 * step).collect()
    }
}

/// A coordinate with two decimals and no trailing zeros.
pub(super) fn at(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A tick's label: as few digits as distinguish it from its neighbours.
pub(super) fn label(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 && (value % 1e5).abs() < 1.0 {
        return format!("{}M", at(value / 1e6));
    }
    if size >= 10_000.0 && (value % 1e3).abs() < 1e-6 {
        return format!("{}k", at(value / 1e3));
    }
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Which arm or phase a mark belongs to; each has a shape or pattern of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    /// Baseline: hollow circle, dashed line, hatched bar.
    Before,
    /// Tuned: filled triangle, solid line, solid bar.
    After,
}

/// The mark of a series at (x, y).
pub(super) fn mark(series: Series, x: f64, y: f64) -> Markup {
    match series {
        Series::Before => html! { circle class="before" cx=(at(x)) cy=(at(y)) r="4.5" {} },
        Series::After => {
            let points = [(x, y - 5.5), (x + 5.0, y + 4.0), (x - 5.0, y + 4.0)];
            html! { polygon class="after" points=(polyline(&points)) {} }
        }
    }
}

/// Points as the value of an SVG attribute.
pub(super) fn polyline(points: &[(f64, f64)]) -> String {
    let points: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{},{}", at(*x), at(*y)))
        .collect();
    points.join(" ")
}

pub(super) fn line(class: &str, from: (f64, f64), to: (f64, f64)) -> Markup {
    html! { line class=(class) x1=(at(from.0)) y1=(at(from.1)) x2=(at(to.0)) y2=(at(to.1)) {} }
}

/// Text with its anchor: `start`, `middle` or `end`.
pub(super) fn text(class: &str, anchor: &str, (x, y): (f64, f64), text: &str) -> Markup {
    html! { text class=(class) x=(at(x)) y=(at(y)) text-anchor=(anchor) { (text) } }
}

/// The plotting area inside a chart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

/// Axis lines with ticks, horizontal grid and both titles. Tick positions and labels are given, so that a category
/// axis is drawn the same way.
pub(super) fn axes(
    frame: Frame,
    (x_ticks, x_title): (&[(f64, String)], &str),
    (y_ticks, y_title): (&[(f64, String)], &str),
) -> Markup {
    html! {
        g class="axes" {
            @for (y, label) in y_ticks {
                (line("grid", (frame.left, *y), (frame.right, *y)))
                (text("tick", "end", (frame.left - 6.0, y + 4.0), label))
            }
            (line("axis", (frame.left, frame.bottom), (frame.right, frame.bottom)))
            @for (x, _) in x_ticks { (line("axis", (*x, frame.bottom), (*x, frame.bottom + 4.0))) }
            @for (x, label) in apart(x_ticks) {
                (text("tick", "middle", (*x, frame.bottom + 17.0), label))
            }
            (text("title", "middle", (f64::midpoint(frame.left, frame.right), frame.bottom + 34.0), x_title))
            (text("title", "start", (0.0, 12.0), y_title))
        }
    }
}

/// The ticks whose labels, centred below them, do not touch the previous one.
fn apart(ticks: &[(f64, String)]) -> Vec<&(f64, String)> {
    let mut end = f64::NEG_INFINITY;
    ticks
        .iter()
        .filter(|(x, label)| {
            let half = DIGIT * label.chars().count() as f64 / 2.0;
            let is_clear = x - half > end + DIGIT;
            if is_clear {
                end = x + half;
            }
            is_clear
        })
        .collect()
}

/// A whole chart; `summary` describes it in words.
pub(super) fn chart(height: f64, summary: &str, body: &Markup) -> Markup {
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (at(height)) } role="img" aria-label=(summary) {
            (body)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_values() {
        let linear = Scale::linear((0.0, 10.0), (0.0, 100.0));
        assert!((linear.place(2.5) - 25.0).abs() < 1e-9);
        let down = Scale::linear((0.0, 10.0), (100.0, 0.0));
        assert!((down.place(10.0)).abs() < 1e-9);
        let log = Scale::log((1.0, 100.0), (0.0, 100.0));
        assert!((log.place(10.0) - 50.0).abs() < 1e-9);
        let nothing = Scale::linear((5.0, 5.0), (0.0, 100.0));
        assert!((nothing.place(5.0) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            Scale::linear((0.0, 10.0), (0.0, 1.0)).ticks(5),
            [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        );
        assert_eq!(
            Scale::log((1.0, 50.0), (0.0, 1.0)).ticks(8),
            [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
        );
        assert_eq!(Scale::log((1.0, 1e6), (0.0, 1.0)).ticks(8).len(), 7);
        let tight = Scale::linear((2600.0, 2700.0), (0.0, 1.0)).ticks(4);
        assert_eq!(tight, [2600.0, 2625.0, 2650.0, 2675.0, 2700.0]);
    }

    #[test]
    fn labels_that_would_touch_are_left_out() {
        let tick = |x: f64, label: &str| (x, label.to_owned());
        let ticks = [tick(0.0, "64"), tick(20.0, "96"), tick(38.0, "128")];
        let kept: Vec<&str> = apart(&ticks).iter().map(|tick| tick.1.as_str()).collect();
        assert_eq!(kept, ["64", "128"]);
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(label(0.5), "0.5");
        assert_eq!(label(12_000.0), "12k");
        assert_eq!(label(2_500_000.0), "2.5M");
        assert_eq!(label(1024.0), "1024");
        assert_eq!(at(3.10), "3.1");
    }
}
