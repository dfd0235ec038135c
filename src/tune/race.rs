//! The race for one shape: which candidate to time next, which to drop, which wins.
//!
//! A pure state machine. It starts no process, reads no clock and knows candidates only by number: the driver calls
//! [`Race::step`], does it, and reports with [`Race::timed`], [`Race::out`], [`Race::checked`] or [`Race::add`]. So
//! every rule here is tested against simulated timers.
//!
//! 1. **Rungs.** All entrants are timed with few samples; those slower than the best × the rung's
//!    factor, beyond noise, are dropped; the rest are timed with more samples. The leader's numbers are
//!    checked before it may set the bar: a kernel that is fast because it is wrong drops nobody.
//! 2. **Expansion.** After the first rung the driver may add relatives of the leaders, which are timed
//!    like everyone else, for as long as that finds something faster.
//! 3. **Run-off.** The last few and the incumbent are timed interleaved, on fresh samples, so that
//!    neither drift nor the luck that brought a candidate here decides. A challenger wins by an exact
//!    sign test on the pairs, its level divided by the number of challengers and of looks; everything
//!    else is a tie, and ties are the incumbent's.
//! 4. **Check.** The winner's numbers are compared with a reference before it is accepted; one that fails
//!    is out and the next best replaces it.

use std::collections::BTreeSet;

use super::protocol::{Numerics, Timing};
use super::sample::{median, relative_spread, sign_test_threshold};

/// Number of a candidate within its race.
pub type Entrant = usize;

/// One rung: how to time, and what is slow enough to drop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rung {
    /// How each entrant is timed.
    pub timing: Timing,
    /// Minimum number of samples, however long a launch takes; see [`Rules::enough_us`].
    pub at_least: u32,
    /// Drop what is slower than the best × this, beyond noise.
    pub keep_within: f64,
    /// Keep at most this many, fastest first, not counting the incumbent.
    pub keep_at_most: usize,
}

/// The rules of a race.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The rungs of the race; at least one.
    pub rungs: Vec<Rung>,
    /// The first rung ends when this many entrants in a row did not improve the best by [`Rules::expansion_gain`]:
    /// they are in the order of a model, the promising first.
    pub patience: usize,
    /// When the samples of one candidate together take longer than this, fewer are taken than the rung requires.
    pub enough_us: f64,
    /// Most rounds of expansion after the first rung.
    pub expansions: usize,
    /// Another round of expansion needs the last to have improved the best by this share.
    pub expansion_gain: f64,
    /// Leaders whose relatives are added in a round.
    pub expand_around: usize,
    /// Most challengers in the run-off.
    pub finalists: usize,
    /// How each look of the run-off is timed.
    pub run_off: Timing,
    /// Minimum number of samples of a look: what the sign test needs to detect a win in the smallest field.
    pub run_off_at_least: u32,
    /// Most looks at the run-off; each adds samples.
    pub looks: usize,
    /// A pair counts for the challenger when it is faster by this share.
    pub min_gain: f64,
    /// Largest probability that a race between equals ends with a challenger winning.
    pub false_wins: f64,
    /// A candidate with a larger share of wrong elements is rejected.
    pub max_err_ratio: f64,
}

/// What the driver must do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Time these; any subset in any order, one report each. A candidate that is still being compiled may wait.
    Time {
        entrants: Vec<Entrant>,
        timing: Timing,
    },
    /// Add relatives of these with [`Race::add`], zero or more.
    Expand {
        /// The leaders, fastest first.
        around: Vec<Entrant>,
    },
    /// Time these in one interleaved request and report all with [`Race::ran_off`].
    RunOff {
        /// The incumbent first, if there is one.
        entrants: Vec<Entrant>,
        timing: Timing,
    },
    /// Compare this one with the reference and report with [`Race::checked`].
    Check { entrant: Entrant },
    /// The race is over.
    Done(Decision),
}

/// How a race ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// A candidate may serve this shape.
    Winner(Winner),
    /// No candidate ran with correct numbers.
    NoneRuns,
}

/// The candidate that may serve the shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Winner {
    pub entrant: Entrant,
    /// Whether it is the incumbent.
    pub incumbent: bool,
    /// Median time of the run-off, µs.
    pub us: f64,
    /// The incumbent's median in the same run-off, µs, if it ran.
    pub incumbent_us: Option<f64>,
    /// Relative spread of the pairs (or of the samples, without an incumbent).
    pub noise: f64,
    /// Share of wrong elements.
    pub err_ratio: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Rung(usize),
    /// The leader of this rung must be correct before it may set the bar for the others.
    Vetting(usize),
    Expanding,
    RunOff,
    Checking,
    Done,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Rungs this entrant has been timed in.
    rungs: usize,
    /// Samples of the last rung, µs.
    last: Vec<f64>,
    /// Median of `last`, µs.
    estimate: Option<f64>,
    /// Samples of the run-off, µs, all looks.
    run_off: Vec<f64>,
    /// Share of wrong elements, once checked and found right.
    err_ratio: Option<f64>,
    /// Too slow so far; called back if all faster ones turn out not to run.
    cut: bool,
    out: bool,
}

/// The race for one shape.
#[derive(Clone, Debug)]
pub struct Race {
    rules: Rules,
    states: Vec<State>,
    incumbent: Option<Entrant>,
    phase: Phase,
    finalists: Vec<Entrant>,
    expansions: usize,
    expanded_around: BTreeSet<Entrant>,
    best_before_expansion: f64,
    /// The best of the first rung when it last improved, and the entrants timed since.
    improved_us: f64,
    fruitless: usize,
    looks: usize,
    /// Entrants still to be checked, best first.
    to_check: Vec<Entrant>,
    decision: Option<Decision>,
}

impl Race {
    /// A race of `entrants` candidates, the first of which is the incumbent if `has_incumbent`.
    pub fn new(rules: Rules, entrants: usize, has_incumbent: bool) -> Self {
        let mut race = Self {
            rules,
            states: vec![State::default(); entrants],
            incumbent: (has_incumbent && entrants > 0).then_some(0),
            phase: Phase::Rung(0),
            finalists: Vec::new(),
            expansions: 0,
            expanded_around: BTreeSet::new(),
            best_before_expansion: f64::INFINITY,
            improved_us: f64::INFINITY,
            fruitless: 0,
            looks: 0,
            to_check: Vec::new(),
            decision: None,
        };
        race.advance();
        race
    }

    /// What to do next. Calling this changes nothing.
    pub fn step(&self) -> Step {
        match self.phase {
            Phase::Rung(rung) => Step::Time {
                entrants: self.pending(rung),
                timing: self.rung_timing(rung),
            },
            Phase::Vetting(_) => match self.leader() {
                Some(entrant) => Step::Check { entrant },
                None => Step::Done(Decision::NoneRuns),
            },
            Phase::Expanding => Step::Expand {
                around: self.leaders_to_expand(),
            },
            Phase::RunOff => Step::RunOff {
                entrants: self.finalists.clone(),
                timing: self.affordable(self.rules.run_off, self.rules.run_off_at_least),
            },
            Phase::Checking => Step::Check {
                entrant: self.to_check[0],
            },
            Phase::Done => Step::Done(self.decision.clone().unwrap_or(Decision::NoneRuns)),
        }
    }

    /// Reports the samples of an entrant of the current rung.
    pub fn timed(&mut self, entrant: Entrant, us: &[f64]) {
        let usable = us.iter().all(|us| us.is_finite() && *us > 0.0) && !us.is_empty();
        let state = &mut self.states[entrant];
        state.rungs += 1;
        state.last = us.to_vec();
        state.estimate = median(us);
        state.out |= !usable;
        if self.phase == Phase::Rung(0) {
            self.lose_patience(self.states[entrant].estimate.unwrap_or(f64::INFINITY));
        }
        self.advance();
    }

    /// Removes an entrant: it was refused, quarantined, or given up.
    pub fn out(&mut self, entrant: Entrant) {
        self.states[entrant].out = true;
        if self.phase == Phase::RunOff {
            self.finalists.retain(|finalist| *finalist != entrant);
            // Pairs need every finalist in every sample.
            for finalist in &self.finalists {
                self.states[*finalist].run_off.clear();
            }
            self.looks = 0;
            if self.challengers().is_empty() {
                self.call_back();
            }
        }
        self.to_check.retain(|candidate| *candidate != entrant);
        self.advance();
    }

    /// Adds `count` entrants in response to [`Step::Expand`] and returns the number of the first.
    pub fn add(&mut self, count: usize) -> Entrant {
        let first = self.states.len();
        self.expanded_around.extend(self.leaders_to_expand());
        self.expansions += 1;
        self.fruitless = 0;
        self.best_before_expansion = self.best().unwrap_or(f64::INFINITY);
        self.states
            .extend(std::iter::repeat_n(State::default(), count));
        self.phase = if count == 0 {
            self.enter_rung(1)
        } else {
            Phase::Rung(0)
        };
        self.advance();
        first
    }

    /// Reports one look of the run-off: samples of every finalist, in the step's order.
    pub fn ran_off(&mut self, us: &[Vec<f64>]) {
        for (finalist, us) in self.finalists.clone().into_iter().zip(us) {
            self.states[finalist].run_off.extend(us);
        }
        self.looks += 1;
        self.judge();
        self.advance();
    }

    /// Reports the numbers of the checked entrant; returns whether they are correct.
    pub fn checked(&mut self, entrant: Entrant, numerics: Numerics) -> bool {
        let right = numerics.not_finite == 0
            && numerics.repeatable
            && numerics.err_ratio <= self.rules.max_err_ratio;
        if right {
            self.states[entrant].err_ratio = Some(numerics.err_ratio);
            self.advance();
        } else {
            self.out(entrant);
        }
        right
    }

    /// Ends the rungs with what has been timed so far: the budget for this shape is spent.
    ///
    /// The run-off and the check still take place. An incumbent that is not yet timed stays in.
    pub fn hurry(&mut self) {
        if let Phase::Rung(_) | Phase::Vetting(_) | Phase::Expanding = self.phase {
            for (entrant, state) in self.states.iter_mut().enumerate() {
                state.out |= state.rungs == 0 && Some(entrant) != self.incumbent;
            }
            self.enter_run_off();
            self.advance();
        }
    }

    /// The fastest estimate so far, µs.
    pub fn best(&self) -> Option<f64> {
        self.alive()
            .filter_map(|entrant| self.states[entrant].estimate)
            .min_by(f64::total_cmp)
    }

    /// The entrant with the fastest estimate so far.
    pub fn leader(&self) -> Option<Entrant> {
        self.by_estimate().into_iter().next()
    }

    /// Number of entrants so far, those that are out included.
    pub fn entrants(&self) -> usize {
        self.states.len()
    }

    fn alive(&self) -> impl Iterator<Item = Entrant> + '_ {
        (0..self.states.len()).filter(|entrant| {
            let state = &self.states[*entrant];
            !state.out && !state.cut
        })
    }

    fn pending(&self, rung: usize) -> Vec<Entrant> {
        self.alive()
            .filter(|entrant| self.states[*entrant].rungs == rung)
            .collect()
    }

    fn rung_timing(&self, rung: usize) -> Timing {
        let rules = &self.rules.rungs[rung];
        Timing {
            stop_above_us: self.best().map(|best| best * rules.keep_within),
            ..self.affordable(rules.timing, rules.at_least)
        }
    }

    /// `timing` with as many samples as fit in [`Rules::enough_us`] at the speed of the best.
    fn affordable(&self, timing: Timing, at_least: u32) -> Timing {
        let sample = self.best().unwrap_or(0.0).max(timing.min_sample_us);
        let affordable = (self.rules.enough_us / sample.max(1.0)) as u32;
        Timing {
            samples: affordable.clamp(at_least.min(timing.samples), timing.samples),
            ..timing
        }
    }

    /// Skips the rest of the first rung after too many entrants without an improvement.
    fn lose_patience(&mut self, estimate: f64) {
        if estimate < self.improved_us * (1.0 - self.rules.expansion_gain) {
            self.improved_us = estimate;
            self.fruitless = 0;
            return;
        }
        self.fruitless += 1;
        if self.fruitless >= self.rules.patience {
            for entrant in self.pending(0) {
                if Some(entrant) != self.incumbent {
                    self.states[entrant].cut = true;
                }
            }
        }
    }

    /// Timed entrants still in, fastest first.
    fn by_estimate(&self) -> Vec<Entrant> {
        let mut timed: Vec<(f64, Entrant)> = self
            .alive()
            .filter_map(|entrant| Some((self.states[entrant].estimate?, entrant)))
            .collect();
        timed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        timed.into_iter().map(|(_, entrant)| entrant).collect()
    }

    fn leaders_to_expand(&self) -> Vec<Entrant> {
        self.by_estimate()
            .into_iter()
            .take(self.rules.expand_around)
            .filter(|entrant| !self.expanded_around.contains(entrant))
            .collect()
    }

    /// Advances as long as nothing is left to do in the current phase.
    fn advance(&mut self) {
        loop {
            let next = match self.phase {
                Phase::Rung(rung) if self.pending(rung).is_empty() => Phase::Vetting(rung),
                Phase::Vetting(rung) => match self.leader() {
                    Some(leader) if self.states[leader].err_ratio.is_none() => return,
                    _ => self.after_rung(rung),
                },
                Phase::RunOff if self.finalists.is_empty() => Phase::Done,
                Phase::Checking => match self.to_check.first() {
                    Some(first) => match self.states[*first].err_ratio {
                        Some(err_ratio) => {
                            self.decision = Some(Decision::Winner(self.winner(*first, err_ratio)));
                            Phase::Done
                        }
                        None => return,
                    },
                    None => Phase::Done,
                },
                _ => return,
            };
            self.phase = next;
            if next == Phase::Done {
                self.decision.get_or_insert(Decision::NoneRuns);
                return;
            }
        }
    }

    fn after_rung(&mut self, rung: usize) -> Phase {
        if rung == 0 {
            let best = self.best().unwrap_or(f64::INFINITY);
            let worth_it = best < self.best_before_expansion * (1.0 - self.rules.expansion_gain);
            if self.expansions < self.rules.expansions
                && worth_it
                && !self.leaders_to_expand().is_empty()
            {
                return Phase::Expanding;
            }
        }
        self.enter_rung(rung + 1)
    }

    /// Drops what was too slow in the rung before `rung` and enters it, or the run-off after the last.
    fn enter_rung(&mut self, rung: usize) -> Phase {
        self.cut(self.rules.rungs[rung - 1]);
        if rung < self.rules.rungs.len() {
            return Phase::Rung(rung);
        }
        self.enter_run_off();
        self.phase
    }

    fn cut(&mut self, rung: Rung) {
        let Some(best) = self.best() else { return };
        let limit = best * rung.keep_within * (1.0 + self.noise());
        let ranked = self.by_estimate();
        let mut kept = 0;
        for entrant in ranked {
            if Some(entrant) == self.incumbent {
                continue;
            }
            let slow = self.states[entrant].estimate > Some(limit);
            if slow || kept == rung.keep_at_most {
                self.states[entrant].cut = true;
            } else {
                kept += 1;
            }
        }
    }

    /// Two standard errors of a median, relative, pooled over the entrants of the last rung: with three samples each,
    /// a single entrant's spread is unreliable.
    fn noise(&self) -> f64 {
        let spreads: Vec<f64> = self
            .alive()
            .filter(|entrant| self.states[*entrant].last.len() > 1)
            .filter_map(|entrant| {
                let last = &self.states[entrant].last;
                // 1.2533: standard error of a median relative to that of a mean, normal distribution.
                Some(1.2533 * relative_spread(last)? / (last.len() as f64).sqrt())
            })
            .collect();
        2.0 * median(&spreads).unwrap_or(0.0)
    }

    fn enter_run_off(&mut self) {
        let mut finalists: Vec<Entrant> = self.incumbent_alive().into_iter().collect();
        finalists.extend(
            self.by_estimate()
                .into_iter()
                .filter(|entrant| Some(*entrant) != self.incumbent)
                .take(self.rules.finalists),
        );
        self.finalists = finalists;
        self.phase = Phase::RunOff;
    }

    /// Lets the fastest of those that were cut run against the incumbent after all.
    fn call_back(&mut self) {
        let mut cut: Vec<(f64, Entrant)> = (0..self.states.len())
            .filter(|entrant| self.states[*entrant].cut && !self.states[*entrant].out)
            .filter_map(|entrant| Some((self.states[entrant].estimate?, entrant)))
            .collect();
        cut.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (_, entrant) in cut.into_iter().take(self.rules.finalists) {
            self.states[entrant].cut = false;
            self.finalists.push(entrant);
        }
    }

    /// The finalists without the incumbent.
    fn challengers(&self) -> Vec<Entrant> {
        let incumbent = self.incumbent_alive();
        let finalists = self.finalists.iter().copied();
        finalists
            .filter(|finalist| Some(*finalist) != incumbent)
            .collect()
    }

    fn incumbent_alive(&self) -> Option<Entrant> {
        self.incumbent.filter(|entrant| !self.states[*entrant].out)
    }

    /// Decides the run-off, or requests another look when a challenger leads without proof.
    fn judge(&mut self) {
        let by_time = |race: &Self, mut entrants: Vec<Entrant>| {
            entrants.sort_by(|a, b| race.run_off_us(*a).total_cmp(&race.run_off_us(*b)));
            entrants
        };
        let Some(incumbent) = self.incumbent_alive() else {
            self.to_check = by_time(self, self.finalists.clone());
            self.phase = Phase::Checking;
            return;
        };
        let challengers = self.challengers();
        let level = self.rules.false_wins / (challengers.len() * self.rules.looks).max(1) as f64;
        let proven: Vec<Entrant> = challengers
            .iter()
            .copied()
            .filter(|challenger| {
                let ratios = self.pair_ratios(*challenger, incumbent);
                let wins = ratios
                    .iter()
                    .filter(|ratio| **ratio < 1.0 - self.rules.min_gain)
                    .count();
                sign_test_threshold(ratios.len(), level).is_some_and(|needed| wins >= needed)
            })
            .collect();
        let fastest_ratio = challengers
            .iter()
            .filter_map(|challenger| median(&self.pair_ratios(*challenger, incumbent)))
            .min_by(f64::total_cmp)
            .unwrap_or(1.0);
        let leads = fastest_ratio < 1.0 - self.rules.min_gain;
        if proven.is_empty() && leads && self.looks < self.rules.looks {
            return;
        }
        // The incumbent is the fallback; if its own numbers are wrong, any finalist may follow.
        let others: Vec<Entrant> = challengers
            .iter()
            .copied()
            .filter(|challenger| !proven.contains(challenger))
            .collect();
        self.to_check = by_time(self, proven);
        self.to_check.push(incumbent);
        self.to_check.extend(by_time(self, others));
        self.phase = Phase::Checking;
    }

    fn run_off_us(&self, entrant: Entrant) -> f64 {
        median(&self.states[entrant].run_off).unwrap_or(f64::INFINITY)
    }

    fn pair_ratios(&self, challenger: Entrant, incumbent: Entrant) -> Vec<f64> {
        let of = |entrant: Entrant| self.states[entrant].run_off.iter();
        of(challenger)
            .zip(of(incumbent))
            .map(|(challenger, incumbent)| challenger / incumbent)
            .filter(|ratio| ratio.is_finite())
            .collect()
    }

    fn winner(&self, entrant: Entrant, err_ratio: f64) -> Winner {
        let incumbent = self.incumbent == Some(entrant);
        let noise = match self.incumbent_alive() {
            Some(holder) if !incumbent => relative_spread(&self.pair_ratios(entrant, holder)),
            _ => relative_spread(&self.states[entrant].run_off),
        };
        Winner {
            entrant,
            incumbent,
            us: self.run_off_us(entrant),
            incumbent_us: self
                .incumbent
                .map(|holder| self.run_off_us(holder))
                .filter(|us| us.is_finite()),
            noise: noise.unwrap_or(0.0),
            err_ratio,
        }
    }
}

#[cfg(test)]
mod tests;
