//! The shapes still to race, given to device workers largest first, or in the requested order if time is short.
//!
//! Shared by the device workers and the coordinator behind one lock. It uses neither workers nor files.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::points::Points;
use super::protocol::Candidate;
use super::task::Task;

/// What a device worker gets when it requests work.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Taken<P> {
    /// A shape to race, and the winners of similar shapes.
    Race(P, Vec<Candidate>),
    /// Nothing now; races in progress may lead to more.
    Nothing,
    /// Everything is done, or nothing more may be started.
    Finished,
}

/// The shapes left to race and their allotted times, shared behind a lock.
#[derive(Debug)]
pub(super) struct WorkQueue<P: Task> {
    state: Mutex<State<P>>,
    changed: Condvar,
    workers: usize,
    limit: Option<Limit<P>>,
}

/// A budget, within which the most valuable shapes are raced first.
#[derive(Debug)]
pub(super) struct Limit<P> {
    ends: Instant,
    asked: BTreeMap<P, usize>,
}

impl<P: Task> Limit<P> {
    /// No race starts after `ends`; `shapes` are in the requested order.
    pub(super) fn new(ends: Instant, shapes: &[P]) -> Self {
        let asked = shapes.iter().cloned().zip(0..).collect();
        Self { ends, asked }
    }

    fn rank(&self, shape: &P) -> usize {
        self.asked.get(shape).copied().unwrap_or(usize::MAX)
    }
}

#[derive(Debug)]
struct State<P: Task> {
    points: Points<P>,
    ready: Vec<P>,
    running: usize,
    closed: bool,
}

impl<P: Task> WorkQueue<P> {
    /// A work queue for `workers` device workers. Without a limit the largest shape goes first, so that all device
    /// workers end at about the same time.
    pub(super) fn new(mut points: Points<P>, workers: usize, limit: Option<Limit<P>>) -> Self {
        let ready = points.hand_out();
        Self {
            state: Mutex::new(State {
                points,
                ready,
                running: 0,
                closed: false,
            }),
            changed: Condvar::new(),
            workers,
            limit,
        }
    }

    /// Takes a shape to race, if there is one.
    pub(super) fn take(&self) -> Taken<P> {
        let mut state = self.lock();
        if state.closed || self.is_over() {
            return Taken::Finished;
        }
        let ready = state.ready.iter().enumerate();
        let first = match &self.limit {
            Some(limit) => ready.min_by_key(|(_, shape)| limit.rank(shape)),
            None => ready.max_by(|a, b| a.1.cost().total_cmp(&b.1.cost())),
        };
        match first.map(|(index, _)| index) {
            Some(index) => {
                let shape = state.ready.swap_remove(index);
                state.running += 1;
                let neighbours = state.points.neighbours(&shape);
                Taken::Race(shape, neighbours)
            }
            None if state.running == 0 => Taken::Finished,
            None => Taken::Nothing,
        }
    }

    /// Waits until the work queue changes, for at most `limit`.
    pub(super) fn wait(&self, limit: Duration) {
        let state = self.lock();
        drop(
            self.changed
                .wait_timeout(state, limit)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Marks a shape as done; `winner` is `None` if nothing ran.
    pub(super) fn finished(&self, shape: &P, winner: Option<Candidate>) {
        let mut state = self.lock();
        state.running -= 1;
        state.points.finished(shape, winner);
        let next = state.points.hand_out();
        state.ready.extend(next);
        drop(state);
        self.changed.notify_all();
    }

    /// Returns a shape that was not raced to its end, so that another device worker may take it.
    pub(super) fn give_back(&self, shape: P) {
        let mut state = self.lock();
        state.running -= 1;
        state.ready.push(shape);
        drop(state);
        self.changed.notify_all();
    }

    /// Prevents further races, and makes open ones give up.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Whether the budget is spent.
    pub(super) fn is_over(&self) -> bool {
        self.limit
            .as_ref()
            .is_some_and(|limit| Instant::now() >= limit.ends)
    }

    /// Races that may still come, those in progress included.
    pub(super) fn may_come(&self) -> Vec<P> {
        self.lock().points.may_come()
    }

    /// Time left in the budget; `None` without one.
    pub(super) fn remaining(&self) -> Option<Duration> {
        let ends = self.limit.as_ref()?.ends;
        Some(ends.saturating_duration_since(Instant::now()))
    }

    /// Time that one race may take if every race that may still come should fit into the budget.
    pub(super) fn allowance(&self) -> Option<Duration> {
        let remaining = self.remaining()?;
        let left = self.may_come().len().max(1);
        Some(remaining.mul_f64(self.workers.min(left) as f64 / left as f64))
    }

    /// Shapes that were never raced: waiting ones, and those for which no race was requested.
    pub(super) fn unraced(&self) -> (Vec<P>, Vec<P>) {
        let state = self.lock();
        (state.ready.clone(), state.points.unraced())
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        // Every change above is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Op, Shape};
    use crate::tune::points::Refine;

    fn shape(m: u32, n: u32) -> Shape {
        Shape {
            op: Op::Blockscale,
            m,
            n,
            k: 128,
            dtype: String::new(),
        }
    }

    #[test]
    fn the_largest_goes_first_and_a_shape_given_back_is_taken_by_another() {
        let shapes = [shape(64, 100), shape(64, 300), shape(512, 200)];
        let queue = WorkQueue::new(Points::new(&shapes, Refine::Every), 2, None);
        let Taken::Race(first, _) = queue.take() else {
            panic!()
        };
        assert_eq!(first, shapes[2]);
        let Taken::Race(second, _) = queue.take() else {
            panic!()
        };
        assert_eq!(second, shapes[1]);
        queue.give_back(first.clone());
        queue.finished(&second, None);
        assert_eq!(queue.take(), Taken::Race(first.clone(), vec![]));
        assert_eq!(queue.take(), Taken::Race(shapes[0].clone(), vec![]));
        assert_eq!(queue.take(), Taken::Nothing);
        queue.finished(&first, None);
        queue.finished(&shapes[0], None);
        assert_eq!(queue.take(), Taken::Finished);
    }

    #[test]
    fn where_time_is_short_the_most_valuable_goes_first() {
        let shapes = [shape(64, 300), shape(64, 100), shape(512, 200)];
        let ends = Instant::now() + Duration::from_secs(60);
        let limit = Some(Limit::new(ends, &shapes));
        let queue = WorkQueue::new(Points::new(&shapes, Refine::Every), 1, limit);
        for shape in shapes {
            assert_eq!(queue.take(), Taken::Race(shape, vec![]));
        }
    }

    #[test]
    fn nothing_starts_after_the_budget() {
        let points = Points::new(&[shape(1, 1)], Refine::Every);
        let queue = WorkQueue::new(points, 1, Some(Limit::new(Instant::now(), &[])));
        assert_eq!(queue.take(), Taken::Finished);
        assert_eq!(queue.unraced().0, [shape(1, 1)]);
    }
}
