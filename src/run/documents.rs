//! What each stage passes to later ones: one document for each stage, declared once, written and read as a whole.
//!
//! A document is JSON in the run folder. Fields may be added with a default, so that a run begun with an older
//! version can continue.

mod fused_moe;
mod profiled;
mod serving;
mod tuning;

use camino::Utf8PathBuf;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use fused_moe::{DeployedMoe, MoeCheck, SeenMoe, TunedMoe, VerifiedMoe};
pub use profiled::Profiled;
pub use serving::{AlsoTuned, Captured, Engagement, HitCount, Inspection, Verified};
pub use tuning::{DeployedTable, Deployment, Tuned};

use super::stage::Stage;
use crate::plan::Plan;
use crate::store::run_dir::RunDir;

/// A document of a run.
pub trait Document: Serialize + DeserializeOwned {
    /// Its path in `run`.
    fn path(run: &RunDir) -> Utf8PathBuf;
}

macro_rules! documents {
    ($($document:ty => $stage:ident),* $(,)?) => {
        $(impl Document for $document {
            fn path(run: &RunDir) -> Utf8PathBuf {
                run.stage(Stage::$stage.name())
            }
        })*
    };
}

documents! {
    Inspection => Inspect,
    Captured => Capture,
    Tuned => Tune,
    Deployment => Deploy,
    Verified => Verify,
}

impl Document for Plan {
    fn path(run: &RunDir) -> Utf8PathBuf {
        run.plan()
    }
}
