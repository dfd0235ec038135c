//! `plan`: which of the captured shapes are worth tuning.

use serde::{Deserialize, Serialize};

use super::Done;
use crate::engine::trouble::{Class, Trouble};
use crate::engine::{Engine, read_json, write_json};
use crate::platform::Inspection;
use crate::shape::Shape;
use crate::stage::Stage;
use crate::table::shapes;

/// What the plan stage decided.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    /// Shapes to tune, most valuable first.
    pub(crate) to_tune: Vec<Shape>,
}

pub(super) fn plan(engine: &mut Engine<'_>) -> Result<Done, Trouble> {
    let inspection: Inspection = read_json(&engine.run.stage(Stage::Inspect.name()))?;
    let bytes = fs_err::read(engine.run.shapes()).map_err(|error| Trouble::file(&error))?;
    let captured =
        shapes::read(&bytes, None).map_err(|error| Trouble::caused(Class::Internal, &error))?;
    let mut weighted: Vec<(f64, Shape)> = captured
        .into_iter()
        .filter(|counted| counted.shape.op == inspection.op)
        .map(|counted| {
            (
                counted.records as f64 * counted.shape.flops(),
                counted.shape,
            )
        })
        .collect();
    weighted.sort_by(|one, other| other.0.total_cmp(&one.0));
    let planned = Planned {
        to_tune: weighted.into_iter().map(|(_, shape)| shape).collect(),
    };
    write_json(&engine.run.plan(), &planned)?;
    Ok(Done::new(format!(
        "{} shapes to tune",
        planned.to_tune.len()
    )))
}
