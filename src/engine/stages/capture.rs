//! `capture`: the same workload, instrumented.

use camino::Utf8PathBuf;

use super::{Captured, Done};
use crate::engine::trial::{SERVER_LOG, TrialOrder};
use crate::engine::trouble::{Class, Trouble};
use crate::engine::{Engine, write_json};
use crate::event::Role;
use crate::log::harvest::Harvest;
use crate::log::scan::{Lines, scan};
use crate::stage::Stage;
use crate::store::file::write_atomic;
use crate::table::shapes::{self, CountedShape};

pub(super) fn capture(engine: &mut Engine<'_>) -> Result<Done, Trouble> {
    let order = TrialOrder {
        stage: Stage::Capture,
        role: Role::Capture,
        env: engine.platform.capture_env(&engine.run.capture()),
        may_build: true,
    };
    // Records of an earlier, killed attempt would be counted twice.
    for entry in fs_err::read_dir(engine.run.capture()).map_err(|error| Trouble::file(&error))? {
        let path = entry.map_err(|error| Trouble::file(&error))?.path();
        fs_err::remove_file(path).map_err(|error| Trouble::file(&error))?;
    }
    let done = engine.trial(&order, &mut |_, _| Ok(()))?;
    let mut files = vec![done.folder.join(SERVER_LOG)];
    for entry in engine
        .run
        .capture()
        .read_dir_utf8()
        .map_err(|error| Trouble::file(&error))?
    {
        files.push(entry.map_err(|error| Trouble::file(&error))?.into_path());
    }
    let harvest = harvest_of(&files)?;
    engine.platform.check_capture(&harvest)?;
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

/// What the files say, logs and record files alike.
fn harvest_of(files: &[Utf8PathBuf]) -> Result<Harvest, Trouble> {
    let mut harvest = Harvest::default();
    for path in files {
        let read = fs_err::File::open(path)
            .and_then(|file| scan(file, path.as_str(), Lines::Count, &mut harvest));
        read.map_err(|error| Trouble::file(&error))?;
    }
    Ok(harvest)
}
