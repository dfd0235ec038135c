//! Rows as they are written: checked, stored, reported.

use super::Session;
use crate::problem::Shape;
use crate::table::aiter::Row;
use crate::tune::aiter::attempt::Files;
use crate::tune::aiter::kept::RowRecord;
use crate::tune::aiter::outcome::Accepted;
use crate::tune::aiter::session::Judged;
use crate::tune::aiter::{AiterTuneError, Incumbent, accept, rows};
use crate::tune::event::TuneEvent;
use crate::tune::protocol;
use crate::tune::results::Quarantined;

impl Session<'_> {
    /// Checks rows and stores good ones; they are durable before `observer` is notified.
    pub(super) fn take(
        &mut self,
        files: &Files,
        landed: &[Row],
        shapes: &[Shape],
        busy_s: f64,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Judged, AiterTuneError> {
        let mut taken = Judged::default();
        if landed.is_empty() {
            return Ok(taken);
        }
        // The profile is written before the table, batch by batch.
        let profile = rows::read(&files.profile, self.order.op);
        for row in landed {
            let Some(shape) = shapes.iter().find(|shape| accept::is_for(row, shape)) else {
                continue;
            };
            let all: Vec<&Row> = profile
                .iter()
                .filter(|row| accept::is_for(row, shape))
                .collect();
            let (row, timed, unmeasured) = match self.refusal(row) {
                None => (row.clone(), timed(&all), lost(&all)),
                Some(reason) => {
                    let refused = RowRecord {
                        row: row.clone(),
                        ..RowRecord::default()
                    };
                    if self.run.keep.refuse(shape, &refused, &reason)? {
                        observer(&TuneEvent::Quarantined(Quarantined {
                            shape: shape.clone(),
                            candidate: candidate(row),
                            evidence: reason.clone(),
                        }));
                    }
                    let Some(row) = self.runner_up(&all) else {
                        let reason = format!("its only row was refused: {reason}");
                        taken.refused.insert(shape.clone(), reason);
                        continue;
                    };
                    (row, timed(&all), lost(&all))
                }
            };
            taken.landed.insert(shape.clone());
            if unmeasured > 0 {
                taken.doubtful.insert(shape.clone());
            }
            let had = self.run.keep.of(shape).is_some();
            let kept = RowRecord {
                row,
                timed,
                unmeasured,
                busy_s,
            };
            let news = self.run.keep.row(shape, kept)?;
            if !had {
                self.settled += 1;
            }
            if news && let Some(accepted) = self.accepted(shape) {
                observer(&TuneEvent::Finished {
                    row: Box::new(accepted.result()),
                    done: self.settled,
                    left_at_most: self.left(),
                    eta_s: self.eta().unwrap_or(0.0),
                });
            }
        }
        Ok(taken)
    }

    /// Recovers shapes from the profile that have no row although their candidates were timed: at some revisions a
    /// shape that no kernel supports makes the tuner drop those after it. Only for batches that were finished when
    /// the tuner ended on its own, whose results are complete.
    pub(super) fn recover(
        &mut self,
        files: &Files,
        measured: &[Shape],
        taken: &Judged,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Judged, AiterTuneError> {
        let without: Vec<Shape> = measured
            .iter()
            .filter(|shape| !taken.landed.contains(*shape) && !taken.refused.contains_key(*shape))
            .cloned()
            .collect();
        if without.is_empty() {
            return Ok(Judged::default());
        }
        let profile = rows::read(&files.profile, self.order.op);
        let best: Vec<Row> = without
            .iter()
            .filter_map(|shape| {
                let all: Vec<&Row> = profile
                    .iter()
                    .filter(|row| accept::is_for(row, shape))
                    .collect();
                self.runner_up(&all)
            })
            .collect();
        self.take(files, &best, &without, 0.0, observer)
    }

    fn refusal(&self, row: &Row) -> Option<String> {
        accept::refusal(self.order.op, row, &self.place, self.order.limits.err_ratio)
    }

    /// The fastest of a shape's candidates that can be deployed.
    fn runner_up(&self, candidates: &[&Row]) -> Option<Row> {
        candidates
            .iter()
            .filter(|row| self.refusal(row).is_none())
            .min_by(|one, other| {
                one.us
                    .unwrap_or(f64::INFINITY)
                    .total_cmp(&other.us.unwrap_or(f64::INFINITY))
            })
            .map(|row| Row {
                line: 0,
                // Rounded as the tuner does in its table.
                us: row.us.map(|us| (us * 1e4).round() / 1e4),
                ..(*row).clone()
            })
    }

    /// The faster of the measured incumbent and the row in use.
    fn incumbent(&self, shape: &Shape) -> Option<Incumbent> {
        let measured = self.order.incumbents.get(shape).cloned();
        let shipped = accept::shipped(&self.order.settings.shipped, shape, &self.place);
        measured
            .into_iter()
            .chain(shipped)
            .min_by(|one, other| one.us.total_cmp(&other.us))
    }

    pub(super) fn accepted(&self, shape: &Shape) -> Option<Accepted> {
        let kept = self.run.keep.of(shape)?;
        let incumbent = self.incumbent(shape);
        Some(Accepted {
            shape: shape.clone(),
            row: kept.row.clone(),
            incumbent_stays: accept::incumbent_stays(&kept.row, incumbent.as_ref()),
            incumbent,
            timed: kept.timed,
            unmeasured: kept.unmeasured,
            busy_s: kept.busy_s,
        })
    }
}

fn candidate(row: &Row) -> protocol::Candidate {
    serde_json::json!({
        "libtype": row.libtype.as_deref(),
        "kernelId": row.kernel_id,
        "splitK": row.split_k,
        "kernelName": row.kernel_name.as_deref(),
    })
}

/// Candidates with a time.
fn timed(profile: &[&Row]) -> u32 {
    let count = profile
        .iter()
        .filter(|row| row.us.is_some_and(|us| us.is_finite() && us > 0.0))
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Candidates lost to a timeout, a dead worker or a fault: the tuner writes `inf` (`base_tuner.py`, `INF_TIME`).
fn lost(profile: &[&Row]) -> u32 {
    let count = profile
        .iter()
        .filter(|row| row.us.is_some_and(f64::is_infinite))
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}
