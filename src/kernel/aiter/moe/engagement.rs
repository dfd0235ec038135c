//! Whether the deployed rows answered a server's look-ups, and whether the kernels they name were present.

use std::collections::BTreeSet;

use camino::Utf8Path;

use super::rows;
use crate::log::LogSummary;
use crate::log::record::{AiterMoe as Call, AiterMoeServed};
use crate::problem::op::fused_moe_aiter::Problem;
use crate::run::documents::{Engagement, HitCount};
use crate::table::fmoe::lookup::Resolver;
use crate::table::fmoe::table::Row;

/// The deployed table, as indexed by processes: for weights that are marked as shuffled, and for others.
pub(super) struct Deployed<'t> {
    pub(super) path: &'t Utf8Path,
    pub(super) marked: Resolver<'t>,
    pub(super) unmarked: Resolver<'t>,
    /// The rows that were tuned for it.
    pub(super) ours: &'t [Row],
}

impl<'t> Deployed<'t> {
    /// The row that a call gets.
    pub(super) fn row(&self, call: &Call) -> Option<&'t Row> {
        let resolver = if call.is_shuffled {
            &self.marked
        } else {
            &self.unmarked
        };
        resolver.find(&call.request).served.row()
    }

    fn is_ours(&self, row: &Row) -> bool {
        let is_it = |ours: &Row| ours.numbers() == row.numbers() && ours.texts == row.texts;
        self.ours.iter().any(is_it)
    }
}

/// The outcome of a call in one process.
enum Served {
    Hit,
    Missed(String),
    Other(String),
}

/// What records and log report about the deployed table. If processes differ the worst counts: a rank without the
/// table means a server without it.
pub(super) fn of(deployed: &Deployed<'_>, log_summary: &LogSummary) -> Engagement {
    let mut engagement = Engagement::default();
    for row in deployed.ours {
        engagement
            .families
            .insert(family(&row.problem()), HitCount::default());
    }
    let not_found = &log_summary.fmoe.not_found;
    let mut used = BTreeSet::new();
    for (call, answers) in &log_summary.aiter_moe.served {
        let problem = &call.request.problem;
        let what = format!("{} M={}", family(problem), call.request.tokens);
        let Some(row) = deployed.row(call) else {
            engagement.unplanned.push(what);
            continue;
        };
        let is_ours = deployed.is_ours(row);
        if is_ours {
            used.insert(row.numbers());
        }
        let judged = answers
            .iter()
            .map(|served| judge(deployed.path, row, served, is_ours.then_some(not_found)))
            .find(|served| !matches!(served, Served::Hit))
            .unwrap_or(Served::Hit);
        let mut asked = is_ours.then(|| engagement.families.entry(family(problem)).or_default());
        match judged {
            Served::Hit => {
                engagement.hit += 1;
                if let Some(asked) = &mut asked {
                    asked.hit += 1;
                }
                continue;
            }
            Served::Missed(why) => engagement.missed.push(format!("{what}: {why}")),
            Served::Other(why) => engagement.other_kernel.push(format!("{what}: {why}")),
        }
        if let Some(asked) = &mut asked {
            asked.missed += 1;
        }
    }
    engagement.unseen = deployed
        .ours
        .iter()
        .filter(|row| !used.contains(&row.numbers()))
        .map(|row| format!("{} M={}", family(&row.problem()), row.token))
        .collect();
    engagement
}

fn judge(
    path: &Utf8Path,
    row: &Row,
    served: &AiterMoeServed,
    not_found: Option<&BTreeSet<String>>,
) -> Served {
    let names = rows::kernels(row);
    if served.table != path.as_str() {
        return Served::Missed(format!("it was looked up in {}", served.table));
    }
    if served.kernels.iter().all(String::is_empty) {
        return Served::Missed(format!(
            "aiter's own choice in place of {}",
            names.join(" and ")
        ));
    }
    if served.kernels != names || served.one_stage != row.run_1stage {
        return Served::Other(format!(
            "{} instead of {}",
            served.kernels.join(" and "),
            names.join(" and ")
        ));
    }
    let absent =
        not_found.and_then(|not_found| names.iter().find(|name| not_found.contains(*name)));
    match absent {
        Some(name) => Served::Other(format!(
            "the compiled module has no kernel `{name}`, and its own choice ran although the log names the row's"
        )),
        None => Served::Hit,
    }
}

/// What one part of a table is for.
fn family(problem: &Problem) -> String {
    format!("E={} N={}", problem.expert, problem.inter_dim)
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::TABLE;
    use super::*;
    use crate::problem::op::fused_moe_aiter::Request;
    use crate::table::fmoe::lookup::Site;
    use crate::table::fmoe::rules::{Release, Rules};
    use crate::table::fmoe::table::Table;

    fn engaged(release: Release, ep: bool, served: &[(&str, [&str; 2])], said: &str) -> Engagement {
        let table = Table::read("deployed", TABLE.as_bytes()).unwrap();
        let resolver =
            || Resolver::new(&table, Rules::new(release), Site::new("gfx942", 304)).unwrap();
        let deployed = Deployed {
            path: Utf8Path::new("/deployed.csv"),
            marked: resolver(),
            unmarked: resolver(),
            ours: &table.rows[..1],
        };
        let call = Call {
            request: Request {
                problem: table.rows[0].problem(),
                tokens: 50,
                ep,
            },
            experts_of_all: ep.then_some(257),
            is_shuffled: false,
        };
        let mut summary = LogSummary::default();
        let answers = served.iter().map(|(path, kernels)| AiterMoeServed {
            one_stage: false,
            kernels: kernels.map(str::to_owned),
            block_m: 32,
            table: (*path).to_owned(),
        });
        summary.aiter_moe.served.insert(call, answers.collect());
        crate::log::scan::scan(
            said.as_bytes(),
            "log",
            crate::log::scan::Lines::Count,
            &mut summary,
        )
        .unwrap();
        of(&deployed, &summary)
    }

    const OURS: (&str, [&str; 2]) = ("/deployed.csv", ["a", "b"]);

    #[test]
    fn a_call_is_engaged_when_every_process_was_given_the_rows_kernels() {
        let engagement = engaged(Release::P, false, &[OURS], "");
        assert_eq!((engagement.hit, engagement.looked_up()), (1, 1));
        assert_eq!(engagement.families["E=257 N=256"].hit, 1);
        assert!(engagement.unseen.is_empty());
        let missed = [
            ("/deployed.csv", ["", ""]),
            ("/tmp/aiter_configs/tuned_fmoe.csv", ["a", "b"]),
        ]
        .map(|other| {
            let engagement = engaged(Release::P, false, &[OURS, other], "");
            assert_eq!(engagement.hit, 0, "one rank is enough");
            engagement.missed[0].clone()
        });
        insta::assert_snapshot!(missed.join("\n"), @"
        E=257 N=256 M=50: aiter's own choice in place of a and b
        E=257 N=256 M=50: it was looked up in /tmp/aiter_configs/tuned_fmoe.csv
        ");
        let other = engaged(Release::P, false, &[("/deployed.csv", ["a", "c"])], "");
        insta::assert_snapshot!(other.other_kernel[0], @"E=257 N=256 M=50: a and c instead of a and b");
    }

    #[test]
    fn a_name_that_the_module_does_not_have_is_no_engagement_whatever_the_look_up_says() {
        let engagement = engaged(
            Release::P,
            false,
            &[OURS],
            "[aiter WARNING] ck kernel not found: b\n",
        );
        assert_eq!(engagement.hit, 0);
        insta::assert_snapshot!(engagement.other_kernel[0], @"E=257 N=256 M=50: the compiled module has no kernel `b`, and its own choice ran although the log names the row's");
        // It is no evidence about another row.
        let other = engaged(
            Release::P,
            false,
            &[OURS],
            "[aiter WARNING] ck kernel not found: x\n",
        );
        assert_eq!(other.hit, 1);
    }

    #[test]
    fn a_row_that_no_look_up_asks_for_under_expert_parallelism_is_seen_to_be_idle() {
        // v0.1.16 looks up one expert less than topk_ids has columns, and the row has all of them.
        let engagement = engaged(Release::V16, true, &[("/deployed.csv", ["", ""])], "");
        assert_eq!(engagement.unplanned, ["E=257 N=256 M=50"]);
        assert_eq!(engagement.unseen, ["E=257 N=256 M=64"]);
        assert_eq!(engagement.families["E=257 N=256"], HitCount::default());
    }
}
