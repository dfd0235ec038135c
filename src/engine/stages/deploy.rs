//! `deploy`: the tuned table in place, and taken back.

use super::{Done, foresee};
use crate::engine::trouble::{Class, Trouble};
use crate::engine::{Engine, read_json, write_json};
use crate::platform::{Deployment, Inspection, Tuned};
use crate::shape::Shape;
use crate::stage::Stage;

pub(super) fn deploy(engine: &mut Engine<'_>) -> Result<Done, Trouble> {
    let inspection: Inspection = read_json(&engine.run.stage(Stage::Inspect.name()))?;
    let tuned: Tuned = read_json(&engine.run.stage(Stage::Tune.name()))?;
    foresee::foresee(engine, &tuned)?;
    let deployment = engine.platform.deploy(&engine.run, &inspection, &tuned)?;
    // The record of what was put in place comes before anybody relies on it.
    write_json(&engine.run.stage(Stage::Deploy.name()), &deployment)?;
    let planned: Vec<Shape> = tuned.rows.iter().map(|row| row.shape.clone()).collect();
    let missing = engine.platform.misses(&inspection, &deployment, &planned)?;
    if !missing.is_empty() {
        let named: Vec<String> = missing.iter().take(5).map(ToString::to_string).collect();
        return Err(Trouble::new(
            Class::Internal,
            format!(
                "{} of {} tuned shapes would miss the deployed table, first {}",
                missing.len(),
                planned.len(),
                named.join("; ")
            ),
        ));
    }
    Ok(Done::new(format!(
        "{} rows in {}; all {} tuned shapes hit in a dry look-up",
        deployment.rows,
        deployment.table.file_name().unwrap_or_default(),
        planned.len()
    )))
}

/// What the run has deployed, in words; nothing when it has not.
pub(crate) fn deployed(engine: &Engine<'_>) -> Result<Vec<String>, Trouble> {
    let path = engine.run.stage(Stage::Deploy.name());
    if !path.is_file() {
        return Ok(Vec::new());
    }
    Ok(read_json::<Deployment>(&path)?.takes_back)
}

/// Takes back what `deploy` did. Doing it twice is doing it once.
pub(crate) fn undo(engine: &mut Engine<'_>) -> Result<(), Trouble> {
    let path = engine.run.stage(Stage::Deploy.name());
    if !path.is_file() {
        return Ok(());
    }
    let deployment: Deployment = read_json(&path)?;
    engine.platform.undo(&engine.run, &deployment)
}
