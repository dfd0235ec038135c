//! `inspect`: determines what serves, and on which device.

use super::Done;
use crate::engine::{Engine, write_document};
use crate::run::error::{Error, ErrorKind};

pub(super) fn inspect(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let (inspection, op) = match (&engine.backend.kernels, &engine.backend.fused_moe) {
        (Some(kernels), experts) => {
            let inspection = kernels.inspect()?;
            let op = match (&inspection.dense_left, experts) {
                (Some(_), Some(experts)) => experts.op().to_owned(),
                _ => inspection.op.to_string(),
            };
            (inspection, op)
        }
        (None, Some(experts)) => (experts.inspect()?, experts.op().to_owned()),
        (None, None) => {
            return Err(Error::new(ErrorKind::Bug, "a backend without any kernels"));
        }
    };
    engine.identify(inspection.identity.clone())?;
    for remark in &inspection.remarks {
        engine.remark(remark.clone());
    }
    write_document(&engine.run, &inspection)?;
    Ok(Done::new(format!(
        "{op} on {} ({} units): {}",
        inspection.gfx, inspection.cu_num, inspection.path
    )))
}
