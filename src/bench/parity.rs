//! Greedy parity: do two servers give the same answers?
//!
//! Seeded prompts are answered greedily at several concurrencies, so that kernels of several M are covered, and the
//! texts are recorded. Two recordings are compared token by token. Another kernel sums in another order, so a near
//! tie may be decided differently, and from there on the two texts are free to differ; hence what is counted are
//! *steps*: tokens generated after an equal prefix. A kernel that is wrong (another scale layout, a wrong row)
//! disagrees at nearly every step.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::load::{self, Load, LoadError, Progress};
use super::prompt;

/// Version of the recording's format.
pub const FORMAT: u32 = 1;

/// The share of steps that must agree where answers are not all equal: 95 %. With a layout fault agreement is about
/// one in the vocabulary's size; with rounding alone it is higher than this.
pub const LEAST_AGREEMENT: f64 = 0.95;

/// The prompts and concurrencies of a parity check, and the server to send them to.
#[derive(Clone, Debug)]
pub struct Parity {
    /// Base URL of the server.
    pub url: String,
    /// Model name as the server knows it.
    pub model: String,
    /// Requests in flight, one round for each; the M of decode steps follows from them.
    pub concurrencies: Vec<usize>,
    /// Prompts in each round.
    pub prompts: usize,
    /// Length of each prompt.
    pub input_len: usize,
    /// Tokens generated for each.
    pub output_len: usize,
    pub seed: u64,
    /// What prompts are made of.
    pub prompt: prompt::Kind,
    /// When to give up on one request.
    pub deadline: Duration,
}

/// The answers of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recording {
    pub format: u32,
    pub seed: u64,
    /// Length of each prompt.
    pub input_len: usize,
    pub output_len: usize,
    /// One round per concurrency.
    pub rounds: Vec<Round>,
}

/// The answers at one concurrency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Requests in flight.
    pub concurrency: usize,
    /// For each prompt, the text of each token in order.
    pub answers: Vec<Vec<String>>,
}

/// Parity cannot be established.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParityError {
    /// The prompts cannot be sent as requested.
    #[error("record the answers")]
    Load(#[from] LoadError),
    #[error(
        "record the answers: {failed} of {of} requests failed at concurrency {concurrency}; the first: {first}"
    )]
    Requests {
        failed: usize,
        of: usize,
        /// Requests in flight.
        concurrency: usize,
        /// The error of the first failed request.
        first: String,
    },
    /// The recordings are not of the same prompts.
    #[error("compare the answers: the recordings differ in {0}")]
    OtherPrompts(&'static str),
}

/// Sends the prompts to the server at `parity.url` and records its answers. `progress` as in [`load::run`].
pub fn record(
    parity: &Parity,
    stop: &AtomicBool,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Recording, ParityError> {
    let mut rounds = Vec::new();
    for &concurrency in &parity.concurrencies {
        let outcome = load::run(
            &Load {
                url: parity.url.clone(),
                model: parity.model.clone(),
                concurrency,
                requests: parity.prompts,
                warmup: 0,
                input_len: parity.input_len,
                output_len: parity.output_len,
                seed: parity.seed,
                prompt: parity.prompt,
                deadline: parity.deadline,
            },
            stop,
            progress,
        )?;
        let failure = outcome
            .requests
            .iter()
            .find_map(|request| request.outcome.as_ref().err());
        let unanswered = parity.prompts - outcome.requests.len() + outcome.failed();
        if unanswered > 0 {
            return Err(ParityError::Requests {
                failed: unanswered,
                of: parity.prompts,
                concurrency,
                first: failure.map_or_else(|| "stopped".to_owned(), ToString::to_string),
            });
        }
        rounds.push(Round {
            concurrency,
            answers: outcome
                .requests
                .into_iter()
                .filter_map(|request| Some(request.outcome.ok()?.pieces))
                .collect(),
        });
    }
    Ok(Recording {
        format: FORMAT,
        seed: parity.seed,
        input_len: parity.input_len,
        output_len: parity.output_len,
        rounds,
    })
}

/// How two recordings relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Relation {
    /// Every answer is identical.
    Equal,
    /// Not all are, but enough steps agree.
    Accepted,
    /// Too few steps agree.
    Refused,
}

/// The first token at which two recordings diverge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Requests in flight.
    pub concurrency: usize,
    /// Index of the prompt, from 0.
    pub prompt: usize,
    /// Token of the answer, from 0.
    pub token: usize,
    /// The baseline's token there.
    pub baseline: String,
    /// The tuned server's text from there on (at most 40 characters).
    pub tuned: String,
}

/// The comparison of two recordings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    pub relation: Relation,
    pub answers: usize,
    /// Answers equal to the last byte.
    pub equal_answers: usize,
    /// Tokens generated after an equal prefix.
    pub steps: usize,
    /// Share of those on which both agree, 0 to 1.
    pub step_agreement: f64,
    /// The share that was required.
    pub least: f64,
    /// The earliest divergence, by token.
    pub first_divergence: Option<Divergence>,
    /// What was accepted or refused, in one sentence.
    pub because: String,
}

impl Agreement {
    /// Whether the tuned server may serve.
    pub fn holds(&self) -> bool {
        self.relation != Relation::Refused
    }
}

/// Compares two recordings of the same prompts; `least` is the share of steps that must agree
/// ([`LEAST_AGREEMENT`] unless a control of two untuned recordings shows that less is normal).
pub fn compare(
    baseline: &Recording,
    tuned: &Recording,
    least: f64,
) -> Result<Agreement, ParityError> {
    let other = |what| Err(ParityError::OtherPrompts(what));
    if baseline.seed != tuned.seed {
        return other("seed");
    }
    if (baseline.input_len, baseline.output_len) != (tuned.input_len, tuned.output_len) {
        return other("lengths");
    }
    let sizes = |recording: &Recording| -> Vec<(usize, usize)> {
        let size = |round: &Round| (round.concurrency, round.answers.len());
        recording.rounds.iter().map(size).collect()
    };
    if sizes(baseline) != sizes(tuned) {
        return other("concurrencies or number of prompts");
    }
    let (mut answers, mut equal_answers, mut steps, mut agreed) = (0, 0, 0, 0);
    let mut first: Option<Divergence> = None;
    for (ours, theirs) in baseline.rounds.iter().zip(&tuned.rounds) {
        for (prompt, (said, says)) in ours.answers.iter().zip(&theirs.answers).enumerate() {
            answers += 1;
            let says = says.concat();
            let (token, at) = common_tokens(said, &says);
            let whole = token == said.len() && at == says.len();
            agreed += token;
            steps += token + usize::from(!whole);
            equal_answers += usize::from(whole);
            if !whole && first.as_ref().is_none_or(|first| token < first.token) {
                first = Some(Divergence {
                    concurrency: ours.concurrency,
                    prompt,
                    token,
                    baseline: said.get(token).cloned().unwrap_or_default(),
                    tuned: says[at..].chars().take(40).collect(),
                });
            }
        }
    }
    let step_agreement = if steps == 0 {
        0.0
    } else {
        agreed as f64 / steps as f64
    };
    let relation = if answers > 0 && equal_answers == answers {
        Relation::Equal
    } else if step_agreement >= least {
        Relation::Accepted
    } else {
        Relation::Refused
    };
    let because = match relation {
        Relation::Equal => format!("all {answers} answers are equal to the last byte"),
        Relation::Accepted => format!(
            "{equal_answers} of {answers} answers are equal and {:.2} % of {steps} steps agree, at least \
             {:.0} % were asked for: differences of this size come from another order of summation",
            step_agreement * 100.0,
            least * 100.0
        ),
        Relation::Refused => format!(
            "only {:.2} % of {steps} steps agree, at least {:.0} % were asked for",
            step_agreement * 100.0,
            least * 100.0
        ),
    };
    Ok(Agreement {
        relation,
        answers,
        equal_answers,
        steps,
        step_agreement,
        least,
        first_divergence: first,
        because,
    })
}

/// How many tokens of `said` the text `says` begins with, and at which byte of `says` they end. The servers may group
/// tokens differently, so only the first side's grouping counts.
fn common_tokens(said: &[String], says: &str) -> (usize, usize) {
    let mut at = 0;
    for (token, text) in said.iter().enumerate() {
        if !says[at..].starts_with(text.as_str()) {
            return (token, at);
        }
        at += text.len();
    }
    (said.len(), at)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeServer, Fault};
    use super::*;

    fn ask(url: &str) -> Result<Recording, ParityError> {
        let parity = Parity {
            url: url.to_owned(),
            model: "fake".to_owned(),
            concurrencies: vec![1, 4],
            prompts: 6,
            input_len: 5,
            output_len: 8,
            seed: 3,
            prompt: prompt::Kind::default(),
            deadline: Duration::from_secs(5),
        };
        record(&parity, &AtomicBool::new(false), &|_| {})
    }

    fn recording(answers: &[&[&str]]) -> Recording {
        let words = |answer: &&[&str]| answer.iter().map(|word| (*word).to_owned()).collect();
        Recording {
            format: FORMAT,
            seed: 1,
            input_len: 2,
            output_len: 4,
            rounds: vec![Round {
                concurrency: 2,
                answers: answers.iter().map(words).collect(),
            }],
        }
    }

    #[test]
    fn a_server_agrees_with_itself() {
        let server = FakeServer::start(Fault::None);
        let (one, two) = (ask(server.url()).unwrap(), ask(server.url()).unwrap());
        assert_eq!(one.rounds.len(), 2);
        assert_eq!(one.rounds[1].answers.len(), 6);
        let found = compare(&one, &two, LEAST_AGREEMENT).unwrap();
        assert_eq!(found.relation, Relation::Equal);
        assert_eq!(found.steps, 2 * 6 * 8);
        assert!(found.holds());
    }

    #[test]
    fn a_server_that_goes_wrong_only_under_load_is_caught() {
        let (right, wrong) = (
            FakeServer::start(Fault::None),
            FakeServer::start(Fault::DivergesWhenBusy),
        );
        let found = compare(
            &ask(right.url()).unwrap(),
            &ask(wrong.url()).unwrap(),
            LEAST_AGREEMENT,
        )
        .unwrap();
        assert_eq!(found.relation, Relation::Refused);
        let parting = found.first_divergence.unwrap();
        assert_eq!((parting.concurrency, parting.token), (4, 2));
        assert!(parting.tuned.starts_with(" other"));
    }

    #[test]
    fn steps_count_only_what_follows_an_equal_beginning() {
        let said = recording(&[&["a", "b", "c", "d"], &["e", "f", "g", "h"]]);
        let says = recording(&[&["a", "b", "x", "y"], &["ef", "gh"]]);
        let found = compare(&said, &says, 0.5).unwrap();
        // Two agreed and one diverged in the first answer; four agreed in the second, however grouped.
        assert_eq!((found.steps, found.equal_answers), (7, 1));
        assert!((found.step_agreement - 6.0 / 7.0).abs() < 1e-12);
        assert_eq!(found.relation, Relation::Accepted);
        assert_eq!(found.first_divergence.unwrap().token, 2);
        assert_eq!(
            compare(&said, &says, 0.9).unwrap().relation,
            Relation::Refused
        );
    }

    #[test]
    fn a_shorter_or_longer_answer_is_not_equal() {
        let (long, short) = (recording(&[&["a", "b"]]), recording(&[&["a"]]));
        for (one, other) in [(&long, &short), (&short, &long)] {
            let found = compare(one, other, 0.9).unwrap();
            assert_eq!(found.relation, Relation::Refused, "{found:?}");
        }
        let none = recording(&[]);
        assert_eq!(
            compare(&none, &none, 0.9).unwrap().relation,
            Relation::Refused,
            "nothing compared is nothing shown"
        );
    }

    #[test]
    fn recordings_of_other_prompts_are_refused() {
        let one = recording(&[&["a"]]);
        let mut other = one.clone();
        other.seed = 9;
        assert_eq!(
            compare(&one, &other, 0.9),
            Err(ParityError::OtherPrompts("seed"))
        );
        assert!(compare(&one, &recording(&[&["a"], &["b"]]), 0.9).is_err());
    }

    #[test]
    fn a_failed_request_is_no_recording() {
        let server = FakeServer::start(Fault::HalfAnswer);
        let error = ask(server.url()).unwrap_err().to_string();
        // Which of the six is first, and where it broke off, is chance.
        let (said, _) = error.split_once("; the first: ").unwrap();
        insta::assert_snapshot!(said, @"record the answers: 6 of 6 requests failed at concurrency 1");
    }
}
