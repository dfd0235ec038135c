//! `inspect`: what serves, on what.

use super::Done;
use crate::engine::{Engine, write_json};
use crate::run::error::Error;
use crate::run::stage::Stage;

pub(super) fn inspect(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let inspection = engine.platform.inspect()?;
    engine.identify(inspection.identity.clone())?;
    for remark in &inspection.remarks {
        engine.remark(remark.clone());
    }
    write_json(&engine.run.stage(Stage::Inspect.name()), &inspection)?;
    Ok(Done::new(format!(
        "{} on {} ({} units): {}",
        inspection.op, inspection.gfx, inspection.cu_num, inspection.path
    )))
}
