//! `gemmtune plan` for calls of aiter's fused MoE.

use camino::Utf8Path;
use serde::Serialize;

use super::super::files;
use super::super::lookup::fused_moe::{card, read_calls};
use super::super::printer::Printer;
use super::place::Place;
use super::{PlanArgs, SHOWN};
use crate::plan::fused_moe::{Input, Plan, PlanReason, make, of_model as of_experts};
use crate::plan::model::Prediction;
use crate::problem::op::fused_moe_aiter::Request;
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::table::fmoe::lookup::{Resolver, Site};
use crate::table::fmoe::requests::{Card, Counted};
use crate::table::fmoe::rules::{Release, Rules};
use crate::table::fmoe::table::{Table, is_of_moe};

#[derive(Serialize)]
struct Document<'a> {
    op: &'static str,
    aiter: &'static str,
    gfx: &'a str,
    cu_num: u32,
    /// Keys that a row serves already.
    served: usize,
    tune: Vec<Row<'a>>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Row<'a> {
    token: u32,
    model_dim: u32,
    inter_dim: u32,
    expert: u32,
    topk: u32,
    act_type: String,
    q_dtype_w: &'a str,
    q_type: String,
    because: PlanReason,
    records: u64,
}

/// The contents of the shapes file, if they are calls of the fused MoE.
pub(super) fn calls_of(args: &PlanArgs) -> Option<(&Utf8Path, Vec<u8>)> {
    let path = args.shapes.as_deref().filter(|path| *path != "-")?;
    let bytes = files::read(path).ok()?;
    is_of_moe(&bytes).then_some((path, bytes))
}

pub(super) fn run(
    args: &PlanArgs,
    (path, bytes): (&Utf8Path, Vec<u8>),
    printer: &Printer,
) -> Result<(), Error> {
    let calls = read_calls(path, &bytes)?;
    let (gfx, cu_num) = card(args.gfx.as_deref(), args.cu, &calls)?;
    let release = args
        .aiter
        .unwrap_or_else(|| Release::of_revision(args.revision));
    let rules = Rules::new(release);
    let table = match &args.tables[..] {
        [] => None,
        [path] => {
            let bytes = files::read(path)
                .map_err(|error| Error::to(ErrorKind::Usage, "read the table", error))?;
            let table = Table::read(path.as_str(), &bytes)
                .map_err(|error| Error::to(ErrorKind::Usage, "use the table", error))?;
            Some(table)
        }
        _ => {
            return Err(Error::new(
                ErrorKind::Usage,
                "a plan for the fused MoE takes one table: the file that AITER_CONFIG_FMOE names, or the one aiter merges",
            )
            .hint("aiter merges its own into /tmp/aiter_configs/tuned_fmoe.csv when it starts"));
        }
    };
    let resolver = table
        .as_ref()
        .map(|table| Resolver::new(table, rules, Site::new(&gfx, cu_num)))
        .transpose()
        .map_err(|error| {
            Error::to(ErrorKind::Usage, "use the table as the runtime does", error)
                .hint("`gemmtune lint` lists every such line")
        })?;
    let plan = make(&Input {
        calls: &calls,
        table: resolver.as_ref(),
        rules,
        decode: &args.capture,
        chunk: args.chunked_prefill,
        refine: args.refine,
    });
    let notes = notes(&plan, rules, calls.iter().any(|call| call.request.ep));
    if let Some(output) = args.output.as_ref().filter(|_| !plan.rows.is_empty()) {
        files::write(output, plan.untuned_csv().as_bytes(), printer)?;
    }
    let document = Document {
        op: "fused_moe",
        aiter: release.name(),
        gfx: &gfx,
        cu_num,
        served: plan.served,
        tune: plan
            .rows
            .iter()
            .map(|row| Row {
                token: row.token,
                model_dim: row.problem.model_dim,
                inter_dim: row.problem.inter_dim,
                expert: row.problem.expert,
                topk: row.problem.topk,
                act_type: format!("ActivationType.{}", row.problem.activation),
                q_dtype_w: &row.problem.q_dtype_w,
                q_type: format!("QuantType.{}", row.problem.q_type),
                because: row.because,
                records: row.records,
            })
            .collect(),
        notes,
    };
    if printer.is_json() {
        return printer.json(&document);
    }
    for row in document.tune.iter().take(SHOWN) {
        printer.say(format!(
            "token={} model_dim={} inter_dim={} expert={} topk={} {} {}",
            row.token, row.model_dim, row.inter_dim, row.expert, row.topk, row.act_type, row.q_type
        ));
    }
    if document.tune.len() > SHOWN {
        printer.say(format!("and {} more", document.tune.len() - SHOWN));
    }
    for note in &document.notes {
        printer.say(note);
    }
    printer.say(format!(
        "{} rows to tune, {} keys have one already",
        document.tune.len(),
        document.served
    ));
    if let Some(output) = args.output.as_ref().filter(|_| !document.tune.is_empty()) {
        printer.say(format!(
            "tune them with `gemmtune tune --backend aiter --aiter-root TREE --shapes {} -o DIR`; nothing of that was run on an AMD GPU by this program",
            quoted(output)
        ));
    }
    Ok(())
}

/// The rows that a model's experts will look up in aiter's fused MoE at the given sizes, with remarks; `None` if its
/// experts do not run there.
pub(super) fn of_model(
    args: &PlanArgs,
    model: Option<&Prediction>,
    place: &Place,
    (decode, chunk): (&[u32], Option<u32>),
) -> Option<(Plan, String)> {
    let experts = model?
        .experts
        .as_ref()
        .filter(|experts| place.gfx.starts_with("gfx") && experts.rejected.is_none())?;
    let problem = of_experts(&experts.problem, &place.gfx)?;
    let release = args
        .aiter
        .unwrap_or_else(|| Release::of_revision(args.revision));
    let plan = make(&Input {
        // Without tokens: only the sizes below are planned for.
        calls: &[Counted {
            request: Request {
                problem: problem.clone(),
                tokens: 0,
                ep: args.ep > 1,
            },
            card: Card::default(),
            records: 0,
        }],
        table: None,
        rules: Rules::new(release),
        decode,
        chunk,
        refine: true,
    });
    let note = format!(
        "with aiter the experts run in its own fused MoE ({problem}): {} rows, which --moe-output writes for its tuner; \
         `gemmtune plan --shapes` of that file and `--table` leave out what a table has",
        plan.rows.len()
    );
    Some((plan, note))
}

fn notes(plan: &Plan, rules: Rules, ep: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if ep && rules.drops_expert {
        notes.push(format!(
            "calls have an expert mask: aiter {} looks them up with one expert less, and so are the rows planned",
            rules.release
        ));
    }
    let fp4 = plan
        .rows
        .iter()
        .filter(|row| row.problem.q_type == "per_1x32")
        .count();
    if fp4 > 0 && fp4 < plan.rows.len() {
        notes.push(
            "rows of per_1x32 stand beside others: on anything but gfx950 aiter's tuner then drops the whole batch, so tune \
             them apart"
                .to_owned(),
        );
    }
    notes
}
