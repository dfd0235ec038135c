//! Look-ups as aiter logged them, each counted once however many loggers wrote it.
//!
//! A server usually has two loggers: aiter's own, which begins a line with `[aiter] `, and the server's, to which the
//! line is propagated. The lines of one log are therefore counted by logger until the log ends, and the higher count
//! is used.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    DTYPES, ENTRIES_MAX, Key, LogSummary, Problem, SHAPES_MAX, Seen, add_one, dtype_index,
};
use crate::log::cursor::find;
use crate::log::engagement::{Hit, Line, LineOutcome, Reuse};
use crate::log::hash::NumberMap;
use crate::problem::{Op, Shape};

/// How a shape's look-ups ended. aiter caches look-ups, so these count processes rather than calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Look-ups that found a row.
    pub hits: u64,
    /// Look-ups that found none.
    pub misses: u64,
    /// The row last found.
    pub hit: Option<Arc<Hit>>,
    /// The table last missed in.
    pub missed_in: Option<Arc<str>>,
}

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::log) enum Logger {
    /// The logger of aiter itself.
    Aiter,
    Server,
}

impl Logger {
    /// The logger of a line in which `before` precedes the message.
    pub(in crate::log) fn of(before: &[u8]) -> Self {
        if before.ends_with(b"[aiter] ") {
            Self::Aiter
        } else {
            Self::Server
        }
    }

    /// The logger of the line that `before` ends in.
    pub(in crate::log) fn of_line(before: &[u8]) -> Self {
        let line = memchr::memrchr2(b'\n', b'\r', before).map_or(0, |end| end + 1);
        match find(&before[line..], b"[aiter] ") {
            Some(_) => Self::Aiter,
            None => Self::Server,
        }
    }
}

/// A count for each logger.
#[derive(Clone, Copy, Debug, Default)]
struct ByLogger([u64; 2]);

impl ByLogger {
    fn add(&mut self, logger: Logger) {
        self.0[logger as usize] += 1;
    }

    fn append(&mut self, later: Self) {
        self.0[0] += later.0[0];
        self.0[1] += later.0[1];
    }

    fn once(self) -> u64 {
        self.0[0].max(self.0[1])
    }
}

/// Hits and misses that one log reports for one shape.
#[derive(Debug, Default)]
struct Ends {
    hits: ByLogger,
    misses: ByLogger,
    hit: Option<Arc<Hit>>,
    missed_in: Option<Arc<str>>,
}

/// The look-ups in the log that is being read.
#[derive(Debug, Default)]
pub(super) struct CurrentLookups {
    ours: NumberMap<Key, Ends>,
    others: BTreeMap<String, ByLogger>,
}

impl CurrentLookups {
    pub(super) fn shapes(&self) -> usize {
        self.ours.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.ours.keys()
    }

    fn add_other(&mut self, family: String, count: impl FnOnce(&mut ByLogger)) {
        if self.others.len() < ENTRIES_MAX || self.others.contains_key(&family) {
            count(self.others.entry(family).or_default());
        }
    }
}

impl LogSummary {
    pub(in crate::log) fn add_lookup(&mut self, line: Line<'_>, logger: Logger) {
        let dtype = line.dtype.and_then(|dtype| std::str::from_utf8(dtype).ok());
        let key = Key {
            op: Some(line.op),
            n: line.n,
            k: line.k,
            m: line.m,
            dtype: dtype_index(dtype.unwrap_or("")),
        };
        let ours = &mut self.current.ours;
        if ours.len() >= SHAPES_MAX && !ours.contains_key(&key) {
            self.add(key, 1);
            return;
        }
        let ends = ours.entry(key).or_default();
        match line.outcome {
            LineOutcome::Hit(hit) => {
                ends.hits.add(logger);
                ends.hit = Some(self.texts.hit(hit.to_owned()));
            }
            LineOutcome::Miss { file } => {
                ends.misses.add(logger);
                ends.missed_in = file.map(|file| self.texts.text(file));
            }
        }
    }

    pub(in crate::log) fn add_other(&mut self, family: String, logger: Logger) {
        self.current.add_other(family, |count| count.add(logger));
    }

    pub(in crate::log) fn add_fused_moe(&mut self, key: String) {
        if self.fused_moe.len() < ENTRIES_MAX {
            self.fused_moe.insert(key);
        }
    }

    pub(in crate::log) fn add_reuse(&mut self, reuse: Reuse) {
        let weight = (reuse.n, reuse.k);
        if self.reused.len() < ENTRIES_MAX || self.reused.contains_key(&weight) {
            self.reused.insert(weight, reuse);
        }
    }

    /// Adds a later part of the log that is being read.
    pub(super) fn append_lookups(&mut self, later: CurrentLookups) {
        let mut ours: Vec<_> = later.ours.into_iter().collect();
        ours.sort_unstable_by_key(|(key, _)| *key);
        for (key, ends) in ours {
            if self.current.ours.len() >= SHAPES_MAX && !self.current.ours.contains_key(&key) {
                self.add(key, ends.hits.once() + ends.misses.once());
                continue;
            }
            let known = self.current.ours.entry(key).or_default();
            // The last miss counts, even if it names no table.
            if ends.misses.once() > 0 {
                known.missed_in = ends.missed_in;
            }
            known.hits.append(ends.hits);
            known.misses.append(ends.misses);
            known.hit = ends.hit.or(known.hit.take());
        }
        for (family, count) in later.others {
            self.current.add_other(family, |known| known.append(count));
        }
    }

    /// Ends a log: from here on its look-ups count once each.
    pub(in crate::log) fn end_log(&mut self) {
        self.fmoe.end_log();
        let current = std::mem::take(&mut self.current);
        // Sorted, so that the same shapes are kept each time when there are more than the limit.
        let mut ours: Vec<_> = current.ours.into_iter().collect();
        ours.sort_unstable_by_key(|(key, _)| *key);
        for (key, ends) in ours {
            let (hits, misses) = (ends.hits.once(), ends.misses.once());
            self.add(key, hits + misses);
            if self.served.len() >= SHAPES_MAX && !self.served.contains_key(&key) {
                continue;
            }
            let served = self.served.entry(key).or_default();
            served.hits += hits;
            served.misses += misses;
            served.hit = ends.hit.or(served.hit.take());
            if misses > 0 {
                served.missed_in = ends.missed_in;
            }
        }
        for (family, count) in current.others {
            add_one(&mut self.others, family, count.once());
        }
    }

    /// Every shape that aiter looked up, and the outcome.
    pub fn served(&self) -> impl Iterator<Item = (Shape, Served)> {
        let mut served: Vec<_> = self.served.iter().collect();
        served.sort_unstable_by_key(|(key, _)| **key);
        served.into_iter().map(|(key, served)| {
            let mut served = served.clone();
            // Its look-up missed, and the function continued with the largest row.
            if let Some(reuse) = self.reuse(*key).filter(|_| served.misses > 0) {
                served.hits += std::mem::take(&mut served.misses);
                let file = served.missed_in.take();
                served.hit = Some(Arc::new(reuse.hit(file.as_deref().unwrap_or(""))));
            }
            let shape = Shape {
                op: key.op.unwrap_or(Op::UNSAID),
                m: key.m,
                n: key.n,
                k: key.k,
                dtype: DTYPES[usize::from(key.dtype)].to_owned(),
            };
            (shape, served)
        })
    }

    /// Look-ups that found a row, and look-ups that did not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        self.served().fold((0, 0), |(hits, misses), (_, served)| {
            (hits + served.hits, misses + served.misses)
        })
    }

    /// The same for each of `seen`, which are all the shapes of [`LogSummary::shapes`]. Look-ups without a dtype are
    /// attributed to the shape that has one, as its records are.
    pub fn hits_and_misses_of(&self, seen: &[Seen]) -> Vec<(u64, u64)> {
        let problem = |shape: &Shape| -> Problem { (shape.op, shape.n, shape.k, shape.m) };
        let mut dtypes: BTreeMap<Problem, usize> = BTreeMap::new();
        for one in seen {
            *dtypes.entry(problem(&one.shape)).or_default() += 1;
        }
        let mut ends: BTreeMap<Problem, Vec<(Shape, Served)>> = BTreeMap::new();
        for (shape, served) in self.served() {
            ends.entry(problem(&shape))
                .or_default()
                .push((shape, served));
        }
        seen.iter()
            .map(|one| {
                let problem = problem(&one.shape);
                let alone = dtypes.get(&problem) == Some(&1);
                let all = ends.get(&problem).into_iter().flatten();
                all.filter(|(shape, _)| alone || shape.dtype == one.shape.dtype)
                    .fold((0, 0), |(hits, misses), (_, served)| {
                        (hits + served.hits, misses + served.misses)
                    })
            })
            .collect()
    }

    /// The row that serves the shape because its M is above every row's.
    fn reuse(&self, key: Key) -> Option<&Reuse> {
        let reuse = self.reused.get(&(key.n, key.k))?;
        let reuses = key
            .op
            .and_then(Op::aiter)
            .is_some_and(|aiter| aiter.reuses_largest_from.is_some());
        (reuses && key.m > reuse.m).then_some(reuse)
    }
}
