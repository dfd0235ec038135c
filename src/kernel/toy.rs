//! Kernels of no runtime, in tests only: all that the loop asks of a family stands in this file. `backend` takes it through the loop
//! with [`crate::server::toy`].

use std::collections::BTreeMap;

use camino::Utf8Path;

use super::{engagement_of, from_elsewhere, gone};
use crate::engine::ports::{Deployed, Kernels, PlanTerms, TuneOrder};
use crate::log::summary::LogSummary;
use crate::plan::cost::Cost;
use crate::plan::fold::Fold;
use crate::problem::{Op, Shape};
use crate::run::documents::{Deployment, Engagement, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::server::toy::{DEVICE, TABLE};
use crate::store::digest::short as digest;
use crate::store::file::write_atomic;
use crate::store::run_dir::RunDir;
use crate::table::aiter::{Row, Table};
use crate::table::lookup::{Resolver, Rules};
use crate::table::revision::Revision;
use crate::table::roofline::Device;
use crate::tune::results::Row as Raced;
use crate::tune::tuned::TunedTable;
use crate::tune::{Effort, TuneEvent};
use crate::workload::env::Environment;

/// Its only kernel (`problem/op/toy.rs`).
const KERNEL: &str = "a9w9_toy_256x128x128";

/// The toy.
#[derive(Debug)]
pub(crate) struct Toy;

impl Kernels for Toy {
    fn inspect(&self) -> Result<Inspection, Error> {
        Ok(Inspection {
            identity: BTreeMap::from([("device".to_owned(), "a toy".to_owned())]),
            op: Op::Toy,
            gfx: DEVICE.0.to_owned(),
            cu_num: DEVICE.1,
            path: "the toy's default kernel".to_owned(),
            linear: None,
            table: None,
            dense_left: None,
            also: Vec::new(),
            remarks: Vec::new(),
        })
    }

    fn seen(&self, inspection: &Inspection, _: &LogSummary) -> Result<Inspection, Error> {
        Ok(inspection.clone())
    }

    fn plan_terms(&self, _inspection: &Inspection) -> Result<PlanTerms, Error> {
        Ok(PlanTerms {
            tables: Vec::new(),
            configs: Vec::new(),
            revision: Revision::H,
            device: Device::unknown("a toy", DEVICE.1),
            fold: Fold::Fine,
            cost: Cost::of(Op::Toy, DEVICE.0),
        })
    }

    /// No time is measured: each shape is said to be twice as fast.
    fn tune(
        &self,
        order: &TuneOrder<'_>,
        _observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Tuned, Error> {
        let raced = |shape: &Shape| Raced {
            shape: shape.clone(),
            candidate: serde_json::json!({"kernelName": KERNEL}),
            incumbent_kept: false,
            us: 1.0,
            incumbent: None,
            incumbent_us: Some(2.0),
            noise: 0.0,
            err_ratio: 0.0,
            timed: 1,
            busy_s: 0.0,
            effort: Effort::Quick,
        };
        let row = |shape: &Shape| Row {
            gfx: Some(DEVICE.0.into()),
            cu_num: Some(DEVICE.1),
            m: shape.m,
            n: shape.n,
            k: shape.k,
            us: Some(1.0),
            kernel_name: Some(KERNEL.into()),
            ..Row::default()
        };
        let mut table = Table::new("toy", Op::Toy, Revision::H);
        table.rows = order.shapes.iter().map(row).collect();
        Ok(Tuned {
            device: "a toy".to_owned(),
            rows: order.shapes.iter().map(raced).collect(),
            tables: vec![TunedTable::csv("toy.csv", &table)],
            ..Tuned::default()
        })
    }

    fn take(&self, inspection: &Inspection, table: &Utf8Path) -> Result<Vec<TunedTable>, Error> {
        from_elsewhere::take(&[inspection.op], table)
    }

    fn deploy(
        &self,
        run: &RunDir,
        _inspection: &Inspection,
        tuned: &Tuned,
    ) -> Result<Deployment, Error> {
        let text: String = tuned.tables.iter().map(TunedTable::text).collect();
        let table = run.deploy().join("a9w9_toy_tuned_gemm.csv");
        fs_err::create_dir_all(run.deploy())
            .and_then(|()| write_atomic(&table, text.as_bytes()))
            .map_err(|error| Error::file(&error))?;
        Ok(Deployment {
            env: BTreeMap::from([(TABLE.to_owned(), table.to_string())]),
            digest: digest(text.as_bytes()),
            rows: tuned.tables.iter().map(TunedTable::count).sum(),
            takes_back: vec![format!("the file {table}")],
            table,
            ..Deployment::default()
        })
    }

    fn undo(&self, _run: &RunDir, deployment: &Deployment) -> Result<(), Error> {
        gone(fs_err::remove_file(&deployment.table))
    }

    fn rows(
        &self,
        _inspection: &Inspection,
        deployment: &Deployment,
        shapes: &[Shape],
    ) -> Result<Vec<Option<String>>, Error> {
        let table = read(deployment)?;
        let resolver = resolver(&table)?;
        let row = |shape| Some(resolver.find(shape).row()?.m.to_string());
        Ok(shapes.iter().map(row).collect())
    }

    fn engagement_env(
        &self,
        _run: &RunDir,
        _deployment: &Deployment,
        _records: &Utf8Path,
    ) -> Result<Environment, Error> {
        Ok(Environment::new())
    }

    fn engagement(
        &self,
        deployed: &Deployed<'_>,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error> {
        let table = read(deployed.deployment)?;
        let rows = table.rows.iter().collect();
        Ok(engagement_of(&[(&resolver(&table)?, rows)], log_summary))
    }

    fn kernel_name(&self, candidate: &serde_json::Value) -> String {
        candidate["kernelName"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

fn read(deployment: &Deployment) -> Result<Table, Error> {
    let bytes = crate::store::file::read(&deployment.table).map_err(|error| Error::file(&error))?;
    Table::read(deployment.table.as_str(), &bytes, Some(Op::Toy))
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))
}

fn resolver(table: &Table) -> Result<Resolver<'_>, Error> {
    Resolver::new(table, Rules::new(Op::Toy, Revision::H), DEVICE.0, DEVICE.1)
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))
}
