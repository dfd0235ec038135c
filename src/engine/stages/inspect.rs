//! `inspect`: what serves, on what.

use super::Done;
use crate::engine::{Engine, write_document};
use crate::run::error::Error;

pub(super) fn inspect(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let inspection = engine.backend.kernels.inspect()?;
    engine.identify(inspection.identity.clone())?;
    for remark in &inspection.remarks {
        engine.remark(remark.clone());
    }
    write_document(&engine.run, &inspection)?;
    Ok(Done::new(format!(
        "{} on {} ({} units): {}",
        inspection.op, inspection.gfx, inspection.cu_num, inspection.path
    )))
}
