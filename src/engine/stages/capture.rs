//! `capture`: the same workload, instrumented.

use super::{Captured, Done, records};
use crate::engine::trial::{SERVER_LOG, TrialOrder};
use crate::engine::trouble::{Class, Trouble};
use crate::engine::{Engine, read_json, write_json};
use crate::event::Role;
use crate::log::harvest::Harvest;
use crate::platform::Inspection;
use crate::stage::Stage;
use crate::store::file::write_atomic;
use crate::table::shapes::{self, CountedShape};

pub(super) fn capture(engine: &mut Engine<'_>) -> Result<Done, Trouble> {
    let inspection: Inspection = read_json(&engine.run.stage(Stage::Inspect.name()))?;
    let folder = engine.run.capture();
    let order = TrialOrder {
        stage: Stage::Capture,
        role: Role::Capture,
        env: engine.platform.capture_env(&engine.run, &folder)?,
        may_build: true,
    };
    records::clear(&folder)?;
    let done = engine.trial(&order, &mut |_, _| Ok(()))?;
    let mut harvest = Harvest::default();
    records::add(&done.folder.join(SERVER_LOG), u64::MAX, &mut harvest)?;
    for file in records::files(&folder)? {
        records::add(&file, u64::MAX, &mut harvest)?;
    }
    engine.platform.check_capture(&inspection, &harvest)?;
    let shapes: Vec<CountedShape> = harvest
        .shapes(None)
        .into_iter()
        .map(|seen| CountedShape {
            shape: seen.shape,
            records: seen.records,
        })
        .collect();
    if shapes.is_empty() {
        return Err(Trouble::new(
            Class::NoShapes,
            "the instrumented server served the workload and told no GEMM shapes",
        )
        .hint(format!("read its log: {}", done.folder.join(SERVER_LOG))));
    }
    let csv = shapes::write(&shapes);
    write_atomic(&engine.run.shapes(), csv.as_bytes()).map_err(|error| Trouble::file(&error))?;
    let captured = Captured {
        trial: done.number,
        distinct: shapes.len(),
        calls: shapes.iter().map(|counted| counted.records).sum(),
        dispatch: harvest.dispatch.keys().cloned().collect(),
        malformed: harvest.malformed,
        decode: harvest.decode_batches.keys().copied().collect(),
        prefill: harvest.prefill_batches.keys().copied().collect(),
        graphs: decode_graphs(&harvest),
        chunk: harvest
            .limits
            .keys()
            .filter_map(|limits| limits.chunked_prefill_size)
            .max(),
    };
    write_json(&engine.run.stage(Stage::Capture.name()), &captured)?;
    if captured.malformed > 0 {
        engine.remark(format!(
            "{} torn or impossible records were left out",
            captured.malformed
        ));
    }
    Ok(Done::new(format!(
        "{} shapes from {} calls, served by {}",
        captured.distinct,
        captured.calls,
        captured.dispatch.join(", ")
    )))
}

/// M of the decode graphs that the server captured.
fn decode_graphs(harvest: &Harvest) -> Vec<u32> {
    let mut sizes: Vec<u32> = harvest
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
