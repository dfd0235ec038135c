//! Which shapes the tuner gets next.
//!
//! Pure. Shapes first go together in small batches. A shape without a row after that, for whatever reason, is run
//! alone, in a batch of its own: at some revisions a shape that no kernel supports spoils others of its batch, a dead
//! worker loses its batch, and a tuner that hangs hangs on one batch. A shape that fails alone has failed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::problem::Shape;
use crate::tune::event::Unserved;

/// A shape that was alone when the tuner died, or that got no row without a message, is tried again: not every death
/// is the shape's fault (ROCm/aiter#1913).
const STRIKES: u32 = 2;

/// After this many consecutive repeats that lost candidates again, the losses are attributed to the candidates, not
/// to the queue.
const FRUITLESS_REPEATS: u32 = 2;

/// How shapes are tuned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RoundKind {
    /// One shape, with time to compile the candidates.
    First,
    Together,
    /// Each in a batch of its own.
    Alone,
}

/// The shapes of one start of the tuner.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Round<P = Shape> {
    pub(super) kind: RoundKind,
    pub(super) shapes: Vec<P>,
    /// Shapes in a batch.
    pub(super) batch: usize,
}

/// Why a start of the tuner ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndReason {
    /// It ended on its own, with all batches done.
    Finished,
    /// It ended on its own or by a signal, with batches left.
    Died(u8),
    /// There was no progress for too long.
    Silent,
    /// A batch took too long.
    BatchTooLong,
    /// The user requested a stop.
    Interrupted,
    /// The budget is spent.
    Budget,
}

/// The result of a start of the tuner.
#[derive(Clone, Debug)]
pub(super) struct RoundResult<P = Shape> {
    pub(super) why: EndReason,
    /// Shapes with an accepted row.
    pub(super) landed: BTreeSet<P>,
    /// Those of them for which candidates were lost to a timeout or a fault.
    pub(super) doubtful: BTreeSet<P>,
    /// Batches that were finished.
    pub(super) passed: usize,
    /// Why shapes have no row, if the tuner reported it or a row was refused.
    pub(super) reasons: BTreeMap<P, String>,
}

/// The shapes still to be tuned.
#[derive(Debug)]
pub(super) struct Queue<P = Shape> {
    together: VecDeque<P>,
    alone: VecDeque<P>,
    /// Shapes with a row that may not be the best.
    again: VecDeque<P>,
    have: BTreeSet<P>,
    strikes: BTreeMap<P, u32>,
    batch: usize,
    repeats_losses: bool,
    fruitless: u32,
    first: bool,
}

impl<P> Default for Queue<P> {
    fn default() -> Self {
        Self {
            together: VecDeque::new(),
            alone: VecDeque::new(),
            again: VecDeque::new(),
            have: BTreeSet::new(),
            strikes: BTreeMap::new(),
            batch: 0,
            repeats_losses: false,
            fruitless: 0,
            first: false,
        }
    }
}

impl<P: Clone + Ord> Queue<P> {
    /// A queue of `shapes`, most valuable first. With `first`, one shape is run before the others; with
    /// `repeats_losses`, shapes are run again if candidates were lost.
    pub(super) fn new(shapes: Vec<P>, batch: usize, first: bool, repeats_losses: bool) -> Self {
        Self {
            together: shapes.into(),
            batch: batch.max(1),
            first,
            repeats_losses,
            ..Self::default()
        }
    }

    /// The next round; `None` when everything is done.
    pub(super) fn next(&mut self) -> Option<Round<P>> {
        let take = |shapes: &mut VecDeque<P>| shapes.drain(..).collect::<Vec<_>>();
        if self.first
            && let Some(shape) = self.together.pop_front()
        {
            self.first = false;
            return Some(Round {
                kind: RoundKind::First,
                shapes: vec![shape],
                batch: 1,
            });
        }
        if !self.together.is_empty() {
            return Some(Round {
                kind: RoundKind::Together,
                shapes: take(&mut self.together),
                batch: self.batch,
            });
        }
        let shapes = if self.alone.is_empty() {
            // One at a time, because the result of one repeat shows whether the next is worthwhile.
            self.again.pop_front().into_iter().collect()
        } else {
            take(&mut self.alone)
        };
        (!shapes.is_empty()).then_some(Round {
            kind: RoundKind::Alone,
            shapes,
            batch: 1,
        })
    }

    /// Processes the result of `round`; returns the shapes that have failed permanently.
    pub(super) fn settle(&mut self, round: Round<P>, ended: &RoundResult<P>) -> Vec<Unserved<P>> {
        let mut failed = Vec::new();
        let stopped = matches!(ended.why, EndReason::Interrupted | EndReason::Budget);
        let (mut back, mut last) = (Vec::new(), Vec::new());
        let batches = round.shapes.len().div_ceil(round.batch.max(1));
        for (index, shape) in round.shapes.into_iter().enumerate() {
            let batch = index / round.batch.max(1);
            let repeated = self.have.contains(&shape);
            if ended.landed.contains(&shape) {
                self.land(shape, round.kind, repeated, ended);
                continue;
            }
            if repeated {
                // It has a row already, which a repeat without a result does not affect.
                self.fruitless += 1;
                continue;
            }
            let over = batch < ended.passed || ended.why == EndReason::Finished;
            if !over && (stopped || batch > ended.passed) {
                back.push(shape);
                continue;
            }
            let known = ended.reasons.get(&shape).cloned();
            let is_known = known.is_some();
            let reason = known.unwrap_or_else(|| match ended.why {
                EndReason::Silent if !over => "the tuner hung on it".to_owned(),
                EndReason::BatchTooLong if !over => "the tuner took too long over it".to_owned(),
                EndReason::Died(code) if !over => {
                    format!("the tuner died over it with exit code {code}")
                }
                _ => "the tuner wrote no row for it and said no reason".to_owned(),
            });
            if round.kind != RoundKind::Alone {
                self.alone.push_back(shape);
                continue;
            }
            let died = matches!(ended.why, EndReason::Died(_));
            if died && over && !is_known && ended.passed < batches {
                // Its row was lost when another shape's death tore the table with rows of earlier batches. That other
                // shape gets a row, fails or counts a strike, so this terminates.
                back.push(shape);
                continue;
            }
            let strikes = self.strikes.entry(shape.clone()).or_default();
            *strikes += 1;
            if !is_known && (died || over) && *strikes < STRIKES {
                // Last, so that what it tears next time is not what was tuned before it.
                last.push(shape);
                continue;
            }
            failed.push(Unserved { shape, reason });
        }
        let queue = match round.kind {
            RoundKind::Alone => &mut self.alone,
            RoundKind::First | RoundKind::Together => &mut self.together,
        };
        for shape in back.into_iter().rev() {
            queue.push_front(shape);
        }
        queue.extend(last);
        failed
    }

    fn land(&mut self, shape: P, kind: RoundKind, repeated: bool, ended: &RoundResult<P>) {
        let doubtful = ended.doubtful.contains(&shape);
        if repeated {
            self.fruitless = if doubtful { self.fruitless + 1 } else { 0 };
        }
        if self.fruitless >= FRUITLESS_REPEATS {
            self.again.clear();
        } else if doubtful && self.repeats_losses && kind == RoundKind::Together && !repeated {
            self.again.push_back(shape.clone());
        }
        self.have.insert(shape);
    }

    /// Shapes without a result, not counting repeats.
    pub(super) fn left(&self) -> Vec<P> {
        self.together.iter().chain(&self.alone).cloned().collect()
    }

    /// Number of repeats that are left.
    pub(super) fn repeats_left(&self) -> usize {
        self.again.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Op;

    fn shape(m: u32) -> Shape {
        Shape {
            op: Op::Blockscale,
            m,
            n: 256,
            k: 512,
            dtype: String::new(),
        }
    }

    fn ended(why: EndReason, landed: &[u32], passed: usize) -> RoundResult {
        RoundResult {
            why,
            landed: landed.iter().copied().map(shape).collect(),
            doubtful: BTreeSet::new(),
            passed,
            reasons: BTreeMap::new(),
        }
    }

    fn queue(batch: usize) -> Queue {
        Queue::new((1..=6).map(shape).collect(), batch, false, true)
    }

    fn sizes(round: &Round) -> Vec<u32> {
        round.shapes.iter().map(|shape| shape.m).collect()
    }

    #[test]
    fn shapes_without_a_row_go_alone_and_then_fail() {
        let mut queue = queue(4);
        let round = queue.next().unwrap();
        assert_eq!((round.kind, round.batch), (RoundKind::Together, 4));
        // The second is unsupported and spoils the rest of its batch.
        assert!(
            queue
                .settle(round, &ended(EndReason::Finished, &[1, 5, 6], 2))
                .is_empty()
        );
        let round = queue.next().unwrap();
        assert_eq!((round.kind, round.batch), (RoundKind::Alone, 1));
        assert_eq!(sizes(&round), [2, 3, 4]);
        let mut alone = ended(EndReason::Finished, &[3, 4], 3);
        alone.reasons.insert(shape(2), "no kernel".to_owned());
        let failed = queue.settle(round, &alone);
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].shape, shape(2));
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn a_hang_costs_its_batch_and_the_others_go_on() {
        let mut queue = queue(2);
        let round = queue.next().unwrap();
        queue.settle(round, &ended(EndReason::Silent, &[1, 2], 1));
        let round = queue.next().unwrap();
        assert_eq!(sizes(&round), [5, 6]);
        queue.settle(round, &ended(EndReason::Finished, &[5, 6], 1));
        let round = queue.next().unwrap();
        assert_eq!(sizes(&round), [3, 4]);
        let failed = queue.settle(round, &ended(EndReason::Silent, &[], 0));
        assert_eq!(failed[0].shape, shape(3));
        assert_eq!(sizes(&queue.next().unwrap()), [4]);
    }

    #[test]
    fn a_death_alone_is_tried_once_more() {
        let mut queue = Queue::new(vec![shape(1)], 1, false, true);
        let round = queue.next().unwrap();
        queue.settle(round, &ended(EndReason::Died(137), &[], 0));
        for _ in 0..2 {
            let round = queue.next().unwrap();
            assert_eq!(round.kind, RoundKind::Alone);
            let failed = queue.settle(round, &ended(EndReason::Died(137), &[], 0));
            if let Some(failed) = failed.first() {
                insta::assert_snapshot!(failed.reason, @"the tuner died over it with exit code 137");
            }
        }
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn rows_torn_by_another_shapes_death_count_no_strike_and_that_shape_goes_last() {
        let mut queue = queue(1);
        let together = queue.next().unwrap();
        queue.settle(together, &ended(EndReason::Died(137), &[], 0));
        let mut failed = Vec::new();
        let mut asked = Vec::new();
        while let Some(round) = queue.next() {
            asked.push(sizes(&round));
            assert!(asked.len() < 12, "no end: {asked:?}");
            let end = match asked.last().unwrap().iter().position(|m| *m == 2) {
                Some(at) => ended(EndReason::Died(137), &[], at),
                None => ended(EndReason::Finished, asked.last().unwrap(), usize::MAX),
            };
            failed.extend(queue.settle(round, &end));
        }
        assert_eq!(
            failed
                .iter()
                .map(|unserved| unserved.shape.m)
                .collect::<Vec<_>>(),
            [2],
            "{asked:?}"
        );
    }

    #[test]
    fn a_tuner_that_dies_when_all_is_over_and_leaves_nothing_comes_to_an_end() {
        let mut queue = queue(2);
        let mut rounds = 0;
        while let Some(round) = queue.next() {
            rounds += 1;
            assert!(rounds < 12, "no end");
            queue.settle(round, &ended(EndReason::Died(1), &[], usize::MAX));
        }
    }

    #[test]
    fn a_stop_leaves_shapes_in_their_order() {
        let mut queue = queue(2);
        let round = queue.next().unwrap();
        queue.settle(round, &ended(EndReason::Budget, &[1, 2], 1));
        assert_eq!(queue.left(), (3..=6).map(shape).collect::<Vec<_>>());
    }

    #[test]
    fn lost_candidates_are_looked_at_again_until_that_is_seen_to_be_fruitless() {
        let mut queue = queue(6);
        let round = queue.next().unwrap();
        let doubtful = |mut ended: RoundResult, sizes: &[u32]| {
            ended.doubtful = sizes.iter().copied().map(shape).collect();
            ended
        };
        let all: Vec<u32> = (1..=6).collect();
        queue.settle(round, &doubtful(ended(EndReason::Finished, &all, 1), &all));
        assert_eq!(queue.repeats_left(), 6);
        assert!(queue.left().is_empty());
        for size in [1, 2] {
            let round = queue.next().unwrap();
            assert_eq!(sizes(&round), [size]);
            queue.settle(
                round,
                &doubtful(ended(EndReason::Finished, &[size], 1), &[size]),
            );
        }
        assert_eq!(queue.next(), None, "the candidates themselves hang");
    }

    #[test]
    fn the_first_shape_goes_before_the_others_where_kernels_are_to_be_compiled() {
        let mut queue = Queue::new((1..=3).map(shape).collect(), 2, true, false);
        let round = queue.next().unwrap();
        assert_eq!((round.kind, sizes(&round)), (RoundKind::First, vec![1]));
        queue.settle(round, &ended(EndReason::Finished, &[], 1));
        assert_eq!(sizes(&queue.next().unwrap()), [2, 3]);
        assert_eq!(sizes(&queue.next().unwrap()), [1]);
    }
}
