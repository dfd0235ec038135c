//! Shapes that keep what serves them today, as the report lists them: neighbouring M in one line.

use std::collections::BTreeMap;

use crate::probe::contest::{Contest, Finding};
use crate::problem::Op;
use crate::report::model::Stays;

/// Runs of neighbouring planned M of one weight that stay for the same reason.
pub(super) fn stays(contests: &[Contest]) -> Vec<Stays> {
    let mut weights = BTreeMap::<(u32, u32, Op), Vec<&Contest>>::new();
    for contest in contests {
        let weight = (contest.shape.n, contest.shape.k, contest.shape.op);
        weights.entry(weight).or_default().push(contest);
    }
    let mut stays = Vec::new();
    for ((n, k, _), mut planned) in weights {
        planned.sort_by_key(|contest| contest.shape.m);
        let (least, most) = (planned[0].shape.m, planned[planned.len() - 1].shape.m);
        for run in planned.chunk_by(|one, other| reason(one) == reason(other)) {
            if run[0].takes_over {
                continue;
            }
            let (from, to) = (run[0].shape.m, run[run.len() - 1].shape.m);
            stays.push(Stays {
                n,
                k,
                min_m: (from > least).then_some(from),
                max_m: (to < most).then_some(to),
                on: run[0].today.clone(),
                why: why(run),
            });
        }
    }
    stays
}

type Reason<'a> = (
    bool,
    Finding,
    &'a str,
    &'a str,
    Option<&'a str>,
    Option<&'a str>,
);

fn reason(contest: &Contest) -> Reason<'_> {
    (
        contest.takes_over,
        contest.finding,
        &contest.today,
        &contest.tuned,
        contest.because.as_deref(),
        contest.said.as_deref(),
    )
}

/// The result of the tuned rows of a run: the worst one, and the range if there are several.
fn why(run: &[&Contest]) -> String {
    let slowest = |contest: &&&Contest| contest.gain.map_or(0.0, |gain| -gain.median);
    let by_ratio = |one: &&&Contest, other: &&&Contest| slowest(one).total_cmp(&slowest(other));
    let (Some(least), Some(most)) = (run.iter().min_by(by_ratio), run.iter().max_by(by_ratio))
    else {
        return String::new();
    };
    let slower = |contest: &Contest| contest.gain.map(|gain| format!("{:.2}", 1.0 / gain.median));
    let why = match (most.finding, slower(least), slower(most)) {
        (Finding::Slower, Some(from), Some(to)) if from != to => {
            format!("{} {from}x to {to}x slower", most.tuned)
        }
        _ => most.outcome(),
    };
    match &most.because {
        Some(because) => format!("{why} ({because})"),
        None => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::contest::Gain;
    use crate::problem::{Op, Shape};

    fn contest(m: u32, ratio: f64) -> Contest {
        let finding = if ratio > 1.0 {
            Finding::Faster
        } else {
            Finding::Slower
        };
        Contest {
            shape: Shape {
                op: Op::Blockscale,
                m,
                n: 512,
                k: 7168,
                dtype: String::new(),
            },
            today: "Triton".to_owned(),
            today_kernel: None,
            tuned: "CK".to_owned(),
            today_us: Some(50.0),
            tuned_us: Some(50.0 / ratio),
            gain: Some(Gain {
                median: ratio,
                low: ratio,
                high: ratio,
            }),
            in_turn: true,
            finding,
            takes_over: finding == Finding::Faster,
            because: None,
            said: None,
        }
    }

    fn sentences(contests: &[Contest]) -> Vec<String> {
        stays(contests).iter().map(Stays::sentence).collect()
    }

    #[test]
    fn neighbouring_m_that_stay_for_one_reason_are_one_line() {
        let contests = [
            contest(8192, 1.0 / 1.18),
            contest(16, 1.3),
            contest(4096, 1.0 / 1.1),
            contest(64, 1.0 / 1.05),
            contest(2048, 1.2),
        ];
        assert_eq!(
            sentences(&contests),
            [
                "stays on Triton: CK 1.05x slower at M = 64",
                "stays on Triton: CK 1.10x to 1.18x slower at M >= 4096"
            ]
        );
    }

    #[test]
    fn a_weight_of_which_nothing_is_switched_is_one_line_for_each_reason() {
        let mut not_timed = contest(32, 1.0);
        not_timed.gain = None;
        not_timed.finding = Finding::NotTimed;
        not_timed.said = Some("today: the profiler saw nothing".to_owned());
        assert_eq!(
            sentences(&[contest(16, 0.5), not_timed]),
            [
                "stays on Triton: CK 2.00x slower at M <= 16",
                "stays on Triton: not timed: today: the profiler saw nothing at M >= 32"
            ]
        );
        assert_eq!(
            sentences(&[contest(16, 0.5), contest(32, 0.5)]),
            ["stays on Triton: CK 2.00x slower at every planned M"]
        );
    }
}
