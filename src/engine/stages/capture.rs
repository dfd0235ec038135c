//! `capture`: the same workload, instrumented.

use super::{Done, fused_moe, records};
use crate::engine::trial::{SERVER_LOG, TrialOrder};
use crate::engine::{Engine, read_document, write_document};
use crate::log::summary::LogSummary;
use crate::run::documents::{Captured, Inspection, SeenMoe};
use crate::run::error::{Error, ErrorKind};
use crate::run::event::Role;
use crate::run::stage::Stage;
use crate::store::file::write_atomic;
use crate::table::shapes::{self, CountedShape};

pub(super) fn capture(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let inspection: Inspection = read_document(&engine.run)?;
    if let Some(kernels) = &engine.backend.kernels {
        kernels.check_place(&engine.run)?;
    }
    let folder = engine.run.capture();
    let order = TrialOrder {
        stage: Stage::Capture,
        role: Role::Capture,
        env: engine.backend.server.capture_env(&engine.run, &folder)?,
        may_build: true,
    };
    records::clear(&folder)?;
    let done = engine.trial(&order, &mut |_, _| Ok(()))?;
    let mut log_summary = LogSummary::default();
    records::add(&done.folder.join(SERVER_LOG), u64::MAX, &mut log_summary)?;
    for file in records::files(&folder)? {
        records::add(&file, u64::MAX, &mut log_summary)?;
    }
    engine.backend.server.check_capture(&log_summary)?;
    let seen = match &engine.backend.kernels {
        Some(kernels) => kernels.seen(&inspection, &log_summary)?,
        None => inspection.clone(),
    };
    let experts = fused_moe::seen(engine, &seen, &log_summary)?;
    let new = |remark: &&String| !inspection.remarks.contains(remark);
    for remark in seen.remarks.iter().filter(new) {
        engine.remark(remark.clone());
    }
    let shapes: Vec<CountedShape> = log_summary
        .shapes(None)
        .into_iter()
        .map(|seen| CountedShape {
            shape: seen.shape,
            records: seen.records,
        })
        .collect();
    if shapes.is_empty() && experts.is_empty() {
        return Err(Error::new(
            ErrorKind::NoShapes,
            "the instrumented server served the workload and logged no GEMM shapes",
        )
        .hint(format!("read its log: {}", done.folder.join(SERVER_LOG))));
    }
    let csv = fused_moe::with_sizes(engine, &shapes::write(&shapes), &experts);
    write_atomic(&engine.run.shapes(), csv.as_bytes()).map_err(|error| Error::file(&error))?;
    let captured = Captured {
        inspection: Some(seen),
        trial: done.number,
        distinct: shapes.len(),
        calls: shapes.iter().map(|counted| counted.records).sum(),
        dispatch: log_summary.dispatch.keys().cloned().collect(),
        malformed: log_summary.malformed,
        decode: log_summary.decode_batches.keys().copied().collect(),
        prefill: log_summary.prefill_batches.keys().copied().collect(),
        graphs: decode_graphs(&log_summary),
        chunk: log_summary
            .limits
            .keys()
            .filter_map(|limits| limits.chunked_prefill_size)
            .max(),
        fused_moe: experts,
    };
    write_document(&engine.run, &captured)?;
    if captured.malformed > 0 {
        engine.remark(format!(
            "{} torn or impossible records were left out",
            captured.malformed
        ));
    }
    let dense = (captured.distinct > 0).then(|| {
        format!(
            "{} shapes from {} calls, served by {}",
            captured.distinct,
            captured.calls,
            captured.dispatch.join(", ")
        )
    });
    let experts = captured.fused_moe.iter().map(SeenMoe::sentence);
    Ok(Done::new(
        dense
            .into_iter()
            .chain(experts)
            .collect::<Vec<_>>()
            .join("; "),
    ))
}

/// M of the decode graphs that the server captured.
fn decode_graphs(log_summary: &LogSummary) -> Vec<u32> {
    let mut sizes: Vec<u32> = log_summary
        .captures
        .keys()
        .filter(|capture| capture.role.ends_with("decode"))
        .flat_map(|capture| {
            let tokens = capture.tokens_per_request.unwrap_or(1);
            capture
                .sizes
                .iter()
                .map(move |size| size.saturating_mul(tokens))
        })
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
