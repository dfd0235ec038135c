//! Times what serves the planned shapes today, before tuning, and compares it with the tuned rows after it.
//!
//! The tuner times kernels alone, which cannot be compared with a linear including its quantiser: SGLang's linear is
//! timed on both paths, by the same clock. If both paths are available in one process they are timed alternately; a
//! table is read only once in a process, so if a table serves today two processes are used that differ only in the
//! table.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use camino::{Utf8Path, Utf8PathBuf};

use super::{Aiter, facts, probe_error};
use crate::engine::ports::TuneOrder;
use crate::kernel::gone;
use crate::probe::contest::{Contest, Finding};
use crate::probe::serving::{self, Served, Ways};
use crate::problem::Shape;
use crate::run::documents::Tuned;
use crate::run::error::{Error, ErrorKind};
use crate::store::digest::short as digest;
use crate::table::kernels::Library;
use crate::tree::route;
use crate::tune::TuneEvent;
use crate::workload::config::Switch;
use crate::workload::env::Environment;

/// The clock in a process's answers if nothing was timed on a device.
const WALL: &str = "wall";

impl Aiter {
    /// Times what serves each shape of the order today. `None` if there is no device to time on.
    pub(super) fn time_today(
        &self,
        order: &TuneOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Vec<Served>, Error> {
        let served = self.time(
            order,
            &order.shapes.iter().collect::<Vec<_>>(),
            (Ways::Today, "what serves today"),
            self.site.environment(),
            &order.folder.join("serving-today.jsonl"),
            observer,
        )?;
        refuse_without_times(&served, "what serves today", |served| {
            served.us.get(serving::TODAY)
        })?;
        Ok(served)
    }

    /// Times each tuned row, and leaves shapes on what serves them today if the row is not faster.
    pub(super) fn against_today(
        &self,
        order: &TuneOrder<'_>,
        today: &[Served],
        tuned: &mut Tuned,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<(), Error> {
        if tuned.rows.is_empty() {
            return Ok(());
        }
        if today.iter().any(|served| served.clock == WALL) {
            tuned.remarks.push(
                "there is no GPU to time on, so the tuned rows were not compared with what serves their shapes today"
                    .to_owned(),
            );
            return Ok(());
        }
        let folder = order.folder.join("tried");
        // Left by a killed attempt: a module of another table, a builder's lock.
        gone(fs_err::remove_dir_all(&folder))?;
        let (arranged, switch) = self.try_out(order.run, order.inspection, tuned, &folder)?;
        let mut env = self.site.environment().clone();
        env.extend(arranged.environment());
        let ways = match switch {
            Some(switch) => {
                // The program switches it on and off.
                env.remove("GEMMTUNE_SWITCH");
                Ways::InTurn { switch }
            }
            None => Ways::Tuned,
        };
        let shapes: Vec<&Shape> = tuned.rows.iter().map(|row| &row.shape).collect();
        let answers = order.folder.join("serving-tuned.jsonl");
        let served = self.time(
            order,
            &shapes,
            (ways, "the tuned rows"),
            &env,
            &answers,
            observer,
        )?;
        refuse_without_times(&served, "the tuned rows", |served| {
            served.us.get(serving::TUNED)
        })?;
        // Its modules are large, and a deployment builds its own.
        gone(fs_err::remove_dir_all(&folder))?;
        self.judge(order, today, &served, tuned)
    }

    fn judge(
        &self,
        order: &TuneOrder<'_>,
        today: &[Served],
        served: &[Served],
        tuned: &mut Tuned,
    ) -> Result<(), Error> {
        let trees = self.trees()?;
        let way = self.way_to(&trees, order.inspection)?;
        let source = super::deploy::fp8_utils(&trees)?;
        let triton = route::triton_shapes(&source);
        let on_triton = |shape: &Shape| way.on_triton(&triton, (shape.n, shape.k));
        let of = |all: &[Served], shape: &Shape| {
            let problem = (shape.m, shape.n, shape.k);
            all.iter()
                .find(|served| (served.m, served.n, served.k) == problem)
                .cloned()
        };
        let mut contests: Vec<Contest> = order
            .shapes
            .iter()
            .map(|shape| {
                let row = tuned.rows.iter().find(|row| row.shape == *shape);
                let library = row.and_then(|row| library(&row.candidate));
                let now = if on_triton(shape) {
                    "Triton"
                } else {
                    "the row in use"
                };
                let (before, after) = (of(today, shape), of(served, shape));
                let names = (now, library.unwrap_or("CK"));
                let mut contest = Contest::judge(
                    shape,
                    names,
                    before.as_ref(),
                    after.as_ref().filter(|_| row.is_some()),
                );
                if row.is_none() {
                    contest.said = Some("no row was tuned".to_owned());
                }
                contest
            })
            .collect();
        if way.shuffles {
            whole_weights(&mut contests, &on_triton);
        }
        let any = contests.iter().any(|contest| contest.takes_over);
        if any && self.switch == Switch::All {
            everything(&mut contests, &on_triton);
        }
        let slower = |contest: &&Contest| contest.takes_over && contest.finding == Finding::Slower;
        if let Some(first) = contests.iter().find(slower) {
            tuned.remarks.push(format!(
                "{} shapes are slower than today and go to the tuned operation all the same, first {}: {} ({})",
                contests.iter().filter(slower).count(),
                first.shape,
                first.outcome(),
                first.because.as_deref().unwrap_or_default()
            ));
        }
        for row in &mut tuned.rows {
            let contest = contests.iter().find(|contest| contest.shape == row.shape);
            if let Some(contest) = contest {
                row.incumbent_kept = !contest.takes_over;
                row.incumbent = Some(serde_json::json!({
                    "kernelName": contest.today_kernel.as_ref().unwrap_or(&contest.today),
                }));
            }
        }
        tuned.contests = contests;
        Ok(())
    }

    fn time(
        &self,
        order: &TuneOrder<'_>,
        shapes: &[&Shape],
        (ways, what): (Ways, &str),
        env: &Environment,
        answers: &Utf8Path,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Vec<Served>, Error> {
        let shapes: Vec<Shape> = shapes.iter().map(|shape| (*shape).clone()).collect();
        fs_err::create_dir_all(order.folder).map_err(|error| Error::file(&error))?;
        let identity = identity(order, env, &ways)?;
        let all = shapes.len();
        serving::serving(
            &serving::Order {
                python: self.site.python.as_str(),
                folder: self.folder.clone(),
                env: env.clone(),
                op: order.inspection.op,
                linear: order.inspection.linear.as_deref(),
                shapes: &shapes,
                ways,
                answers,
                identity: &identity,
                silence: self.ready_limit,
                keeper: &self.site.keeper,
                interrupt: order.interrupt,
            },
            &mut |done| {
                observer(&TuneEvent::Remark {
                    text: format!("timing {what} through SGLang's linear: {done} of {all} shapes"),
                });
            },
        )
        .map_err(|error| probe_error(&error))
    }
}

/// What determines the kernels of a process: the trees and the device, its environment, and the files named there.
fn identity(order: &TuneOrder<'_>, env: &Environment, ways: &Ways) -> Result<String, Error> {
    let mut text = format!("{:?}{env:?}{ways:?}", order.inspection.identity);
    let named: Vec<Utf8PathBuf> = env
        .values()
        .flatten()
        .map(Utf8PathBuf::from)
        .chain(match ways {
            Ways::InTurn { switch } => Some(switch.clone()),
            Ways::Today | Ways::Tuned => None,
        })
        .filter(|path| path.is_file())
        .collect();
    for path in named {
        text += &digest(&facts::read(&path)?);
    }
    Ok(digest(text.as_bytes()))
}

/// If not a single shape has a time, the cause is not an individual shape.
fn refuse_without_times(
    served: &[Served],
    what: &str,
    times: impl Fn(&Served) -> Option<&Vec<f64>>,
) -> Result<(), Error> {
    let timed = |served: &&Served| served.said.is_none() && times(served).is_some();
    if served.iter().any(|served| timed(&served)) {
        return Ok(());
    }
    let said = served.iter().find_map(|served| served.said.clone());
    Err(Error::new(
        ErrorKind::Environment,
        format!(
            "{what} could not be timed for any of {} shapes: {}",
            served.len(),
            said.as_deref().unwrap_or("nothing was answered")
        ),
    )
    .hint("a profiler must see the GPU: `gemmtune doctor` looks at the device, `gemmtune probe` times a table"))
}

/// Where weights are laid out for one kernel when they are loaded, a weight on Triton is switched as a whole or not
/// at all: it is switched if one of its rows is faster and none is slower.
fn whole_weights(contests: &mut [Contest], on_triton: &dyn Fn(&Shape) -> bool) {
    #[derive(Default)]
    struct Weight {
        faster: bool,
        against: Option<u32>,
    }
    let mut weights = BTreeMap::<(u32, u32), Weight>::new();
    for contest in contests.iter().filter(|contest| on_triton(&contest.shape)) {
        let weight = match weights.entry((contest.shape.n, contest.shape.k)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Weight::default()),
        };
        match contest.finding {
            Finding::Faster => weight.faster = true,
            Finding::Same => {}
            Finding::Slower | Finding::NotTimed => {
                weight.against.get_or_insert(contest.shape.m);
            }
        }
    }
    for contest in contests.iter_mut() {
        let Some(weight) = weights.get(&(contest.shape.n, contest.shape.k)) else {
            continue;
        };
        let takes_over = weight.faster && weight.against.is_none();
        if takes_over != contest.takes_over {
            contest.because = Some(match weight.against {
                Some(m) => format!(
                    "its weight is laid out for one kernel when it is loaded, and at M = {m} the tuned one is not as fast"
                ),
                None => "its weight is laid out for one kernel when it is loaded".to_owned(),
            });
        }
        contest.takes_over = takes_over;
    }
}

/// The configuration sends every GEMM to the tuned operation: there the tuned row is better than none.
fn everything(contests: &mut [Contest], on_triton: &dyn Fn(&Shape) -> bool) {
    for contest in contests {
        if !contest.takes_over && on_triton(&contest.shape) {
            contest.takes_over = true;
            contest.because = Some("`backend.switch = \"all\"` sends it there".to_owned());
        }
    }
}

/// The library of a tuned row, for display.
fn library(candidate: &serde_json::Value) -> Option<&'static str> {
    let named = |key: &str| candidate[key].as_str();
    let library = named("libtype")
        .and_then(Library::of_libtype)
        .or_else(|| named("kernelName").and_then(Library::of_kernel))?;
    Some(match library {
        Library::Ck => "CK",
        Library::CkTile => "CKTile",
        _ => library.name(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Op;

    fn contest(m: u32, n: u32, finding: Finding) -> Contest {
        Contest {
            shape: Shape {
                op: Op::BlockscaleBpreshuffle,
                m,
                n,
                k: 7168,
                dtype: String::new(),
            },
            today: "Triton".to_owned(),
            today_kernel: None,
            tuned: "CK".to_owned(),
            today_us: None,
            tuned_us: None,
            gain: None,
            in_turn: false,
            finding,
            takes_over: finding == Finding::Faster,
            because: None,
            said: None,
        }
    }

    fn taken_over(contests: &[Contest]) -> Vec<(u32, u32)> {
        let taken = contests.iter().filter(|contest| contest.takes_over);
        taken
            .map(|contest| (contest.shape.n, contest.shape.m))
            .collect()
    }

    #[test]
    fn a_weight_that_is_laid_out_once_is_switched_whole_or_not_at_all() {
        let mut contests = vec![
            contest(16, 512, Finding::Faster),
            contest(4096, 512, Finding::Slower),
            contest(16, 1024, Finding::Faster),
            contest(4096, 1024, Finding::Same),
            // The operation serves it today, so its rows are independent.
            contest(16, 2048, Finding::Faster),
            contest(4096, 2048, Finding::Slower),
        ];
        whole_weights(&mut contests, &|shape| shape.n != 2048);
        assert_eq!(
            taken_over(&contests),
            [(1024, 16), (1024, 4096), (2048, 16)]
        );
        insta::assert_snapshot!(contests[0].because.as_ref().unwrap(), @"its weight is laid out for one kernel when it is loaded, and at M = 4096 the tuned one is not as fast");
        assert!(contests[4].because.is_none());
    }

    #[test]
    fn everything_goes_where_the_configuration_says_so() {
        let mut contests = vec![
            contest(16, 512, Finding::Faster),
            contest(4096, 512, Finding::Slower),
            contest(4096, 2048, Finding::Slower),
        ];
        everything(&mut contests, &|shape| shape.n != 2048);
        assert_eq!(taken_over(&contests), [(512, 16), (512, 4096)]);
    }
}
