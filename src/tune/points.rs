//! Which M of each weight to race: all of them, or the ends first and more only where winners differ.
//!
//! A table that a runtime reads by *nearest M* needs no row between two equal ones: whichever is nearer, the same
//! kernel runs. So the ends of the observed M are raced first, and an interval is split at the observed M nearest its
//! geometric middle for as long as its ends have different winners. Pure bookkeeping; what "different" means is
//! equality of candidates.

use std::collections::{BTreeMap, BTreeSet};

use super::protocol::Candidate;
use super::rules::Effort;
use super::task::Task;

/// When to race an M between two others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refine {
    /// Every M: the runtime looks rows up by exact or rounded M.
    Every,
    /// Ends first: the runtime takes the row of the nearest M.
    WhereWinnersDiffer {
        /// An interval no wider than this ratio is not split even if its ends differ.
        narrow: f64,
        /// An interval wider than this ratio is split even if its ends agree, because a third kernel may win in
        /// between.
        wide: f64,
    },
}

impl Refine {
    /// The refinement for a nearest-M table at `effort`: at most half an octave of M is left to the
    /// neighbour's row, at least every fourth (full) or sixteenth (quick) octave boundary is looked at.
    pub fn nearest_m(effort: Effort) -> Self {
        match effort {
            Effort::Quick => Self::WhereWinnersDiffer {
                narrow: 1.5,
                wide: 16.0,
            },
            Effort::Full => Self::WhereWinnersDiffer {
                narrow: 1.2,
                wide: 4.0,
            },
        }
    }
}

/// One weight: operation, N, K and dtype, with its observed M.
#[derive(Clone, Debug, Default)]
struct Group {
    observed: BTreeSet<u32>,
    /// Raced M with the winner, `None` if nothing ran.
    raced: BTreeMap<u32, Option<Candidate>>,
    /// Started but not finished.
    running: BTreeSet<u32>,
}

/// Which shapes have been raced, are left, or need no race.
#[derive(Clone, Debug)]
pub struct Points<P: Task> {
    refine: Refine,
    groups: BTreeMap<P::Weights, Group>,
}

impl<P: Task> Points<P> {
    /// The points of `shapes`, none raced yet.
    pub fn new(shapes: &[P], refine: Refine) -> Self {
        let mut groups: BTreeMap<P::Weights, Group> = BTreeMap::new();
        for shape in shapes {
            groups
                .entry(shape.weights())
                .or_default()
                .observed
                .insert(shape.m());
        }
        Self { refine, groups }
    }

    /// Shapes to race now that were not returned before.
    pub fn hand_out(&mut self) -> Vec<P> {
        let refine = self.refine;
        let wanted = self.groups.iter().flat_map(|(weight, group)| {
            let ms = group.wanted(refine).into_iter();
            ms.map(|m| P::at(weight, m))
        });
        let due: Vec<P> = wanted.filter(|task| self.is_due(task)).collect();
        for task in &due {
            if let Some(group) = self.groups.get_mut(&task.weights()) {
                group.running.insert(task.m());
            }
        }
        due
    }

    /// Whether everything that the candidates of `task` are combined from is known.
    fn is_due(&self, task: &P) -> bool {
        task.parts().iter().all(|part| {
            self.groups.get(&part.weights()).is_none_or(|group| {
                let m = part.m();
                group.raced.contains_key(&m) || !group.observed.contains(&m)
            })
        })
    }

    /// Records the winner of `shape`; `None` if nothing ran.
    pub fn finished(&mut self, shape: &P, winner: Option<Candidate>) {
        if let Some(group) = self.groups.get_mut(&shape.weights()) {
            group.running.remove(&shape.m());
            group.raced.insert(shape.m(), winner);
        }
    }

    /// The combination of its parts' winners, followed by the winners at the raced M of the same weight, nearest M
    /// first.
    pub fn neighbours(&self, shape: &P) -> Vec<Candidate> {
        let winner = |part: &P| {
            self.groups
                .get(&part.weights())?
                .raced
                .get(&part.m())?
                .clone()
        };
        let mut winners = shape.assembled(&winner);
        let Some(group) = self.groups.get(&shape.weights()) else {
            return winners;
        };
        let distance = |m: u32| (f64::from(m).ln() - f64::from(shape.m()).ln()).abs();
        let mut raced: Vec<(u32, &Candidate)> = group
            .raced
            .iter()
            .filter_map(|(m, winner)| Some((*m, winner.as_ref()?)))
            .collect();
        raced.sort_by(|a, b| distance(a.0).total_cmp(&distance(b.0)));
        for (_, winner) in raced {
            if !winners.contains(winner) {
                winners.push(winner.clone());
            }
        }
        winners
    }

    /// Observed shapes that are neither raced nor being raced: served by a neighbour's row once everything is done,
    /// still to come before that.
    pub fn unraced(&self) -> Vec<P> {
        self.groups
            .iter()
            .flat_map(|(weight, group)| {
                group
                    .observed
                    .iter()
                    .filter(|m| !group.raced.contains_key(m) && !group.running.contains(m))
                    .map(|m| P::at(weight, *m))
            })
            .collect()
    }

    /// The races that may still come, including those in progress: every unraced M of an open interval.
    pub fn may_come(&self) -> Vec<P> {
        let refine = self.refine;
        self.groups
            .iter()
            .flat_map(|(weight, group)| {
                let mut ms: BTreeSet<u32> = group.running.clone();
                ms.extend(group.open(refine));
                ms.into_iter().map(|m| P::at(weight, m))
            })
            .collect()
    }
}

impl Group {
    fn wanted(&self, refine: Refine) -> Vec<u32> {
        let new = |m: &u32| !self.raced.contains_key(m) && !self.running.contains(m);
        match refine {
            Refine::Every => self.observed.iter().copied().filter(new).collect(),
            Refine::WhereWinnersDiffer { .. } => {
                let ends = [self.observed.first(), self.observed.last()];
                let mut wanted: BTreeSet<u32> =
                    ends.into_iter().flatten().copied().filter(new).collect();
                for (low, high) in self.intervals(refine) {
                    wanted.extend(self.middle(low, high).filter(new));
                }
                wanted.into_iter().collect()
            }
        }
    }

    /// Raced neighbours between which an observed M is still worth a race.
    fn intervals(&self, refine: Refine) -> Vec<(u32, u32)> {
        let Refine::WhereWinnersDiffer { narrow, wide } = refine else {
            return Vec::new();
        };
        // An M that is being raced splits its interval already.
        let known: BTreeSet<u32> = self.raced.keys().chain(&self.running).copied().collect();
        known
            .iter()
            .zip(known.iter().skip(1))
            .filter_map(|(low, high)| {
                let (below, above) = (self.raced.get(low)?, self.raced.get(high)?);
                let ratio = f64::from(*high) / f64::from(*low);
                let agree = below.is_some() && below == above;
                let split = if agree { ratio > wide } else { ratio > narrow };
                split.then_some((*low, *high))
            })
            .collect()
    }

    /// The observed M strictly between the two that is nearest their geometric middle.
    fn middle(&self, low: u32, high: u32) -> impl Iterator<Item = u32> {
        let centre = f64::midpoint(f64::from(low).ln(), f64::from(high).ln());
        let distance = |m: u32| (f64::from(m).ln() - centre).abs();
        self.observed
            .iter()
            .copied()
            .filter(|m| low < *m && *m < high)
            .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
            .into_iter()
    }

    /// Observed M that may still be raced.
    fn open(&self, refine: Refine) -> Vec<u32> {
        let unraced: Vec<u32> = self
            .observed
            .iter()
            .copied()
            .filter(|m| !self.raced.contains_key(m) && !self.running.contains(m))
            .collect();
        let ends = [self.observed.first(), self.observed.last()];
        let ends_raced = ends.iter().flatten().all(|m| self.raced.contains_key(m));
        if refine == Refine::Every || !ends_raced || !self.running.is_empty() {
            return unraced;
        }
        let intervals = self.intervals(refine);
        let inside = |m: &u32| intervals.iter().any(|(low, high)| low < m && m < high);
        unraced.into_iter().filter(inside).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Op, Shape};

    fn shape(m: u32) -> Shape {
        Shape {
            op: Op::TritonBlockFp8,
            m,
            n: 4096,
            k: 4096,
            dtype: String::new(),
        }
    }

    fn kernel(id: u32) -> Candidate {
        serde_json::json!({ "id": id })
    }

    /// Races until no shape is left; the winner at M is `winner(m)`. Returns the raced M in order.
    fn race_all(points: &mut Points<Shape>, winner: impl Fn(u32) -> u32) -> Vec<u32> {
        let mut raced = Vec::new();
        loop {
            let next = points.hand_out();
            if next.is_empty() {
                return raced;
            }
            for shape in next {
                raced.push(shape.m);
                points.finished(&shape, Some(kernel(winner(shape.m))));
            }
        }
    }

    const TYPICAL: [u32; 18] = [
        1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096,
    ];

    #[test]
    fn ends_first_and_splits_only_around_the_change() {
        let shapes: Vec<Shape> = TYPICAL.iter().map(|m| shape(*m)).collect();
        let mut points = Points::new(&shapes, Refine::nearest_m(Effort::Quick));
        let raced = race_all(&mut points, |m| u32::from(m >= 96));
        assert_eq!(raced[..2], [1, 4096]);
        assert!(raced.len() <= 9, "{raced:?}");
        assert!(raced.contains(&64) && raced.contains(&96), "{raced:?}");
        assert_eq!(points.may_come(), []);
        // What was not raced lies between two equal winners.
        for left in points.unraced() {
            let below = raced.iter().filter(|m| **m < left.m).max().unwrap();
            let above = raced.iter().filter(|m| **m > left.m).min().unwrap();
            let side = |m: u32| m >= 96;
            assert_eq!(side(*below), side(*above), "{}", left.m);
        }
    }

    #[test]
    fn every_m_means_every_m() {
        let shapes: Vec<Shape> = TYPICAL.iter().map(|m| shape(*m)).collect();
        let mut points = Points::new(&shapes, Refine::Every);
        assert_eq!(race_all(&mut points, |_| 0).len(), TYPICAL.len());
    }

    #[test]
    fn close_m_are_left_to_their_neighbour() {
        let shapes: Vec<Shape> = (1000..1100).map(shape).collect();
        let mut points = Points::new(&shapes, Refine::nearest_m(Effort::Full));
        assert_eq!(race_all(&mut points, |m| m).len(), 2);
    }

    #[test]
    fn winners_at_the_nearest_m_come_first() {
        let shapes: Vec<Shape> = [1, 8, 4096].map(shape).into();
        let mut points = Points::new(&shapes, Refine::nearest_m(Effort::Full));
        points.hand_out();
        points.finished(&shape(1), Some(kernel(1)));
        points.finished(&shape(4096), Some(kernel(2)));
        assert_eq!(points.neighbours(&shape(8)), [kernel(1), kernel(2)]);
        assert_eq!(points.neighbours(&shape(2048)), [kernel(2), kernel(1)]);
    }
}
