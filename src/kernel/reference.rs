//! The built-in CPU engine's kernels: everything is configured by environment, nothing is edited.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::{from_elsewhere, gone, tune_error};
use crate::engine::ports::{Deployed, Kernels, PlanTerms, TuneOrder};
use crate::log::summary::LogSummary;
use crate::plan::cost::Cost;
use crate::plan::fold::Fold;
use crate::problem::{Op, Shape};
use crate::proc::Keeper;
use crate::run::documents::{Deployment, Engagement, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::server::reference::set;
use crate::store::digest::short as digest;
use crate::store::file::write_atomic;
use crate::store::run_dir::RunDir;
use crate::table::aiter::{Row, Table};
use crate::table::lookup::{Resolver, Rules};
use crate::table::revision::Revision;
use crate::table::roofline::Device;
use crate::tune::backends::reference::Reference as Candidates;
use crate::tune::tuned::TunedTable;
use crate::tune::worker::WorkerCommand;
use crate::tune::{Effort, TuneEvent, TuneRequest};
use crate::workload::config::Config;
use crate::workload::env::Environment;

/// The variable that names the engine's table.
const TABLE_VARIABLE: &str = "GEMMTUNE_REFERENCE_TABLE";

/// Two 8-lane multiply-adds per clock at 2.4 GHz.
const FLOPS_PER_CORE: f64 = 7.7e10;

/// What one core of a server CPU streams from memory.
const BYTES_PER_CORE: f64 = 1e10;

/// The kernel family of the reference engine.
#[derive(Debug)]
pub(crate) struct Reference {
    keeper: Keeper,
    server_env: BTreeMap<String, String>,
}

impl Reference {
    pub(crate) fn new(config: &Config, keeper: &Keeper) -> Self {
        Self {
            keeper: keeper.clone(),
            server_env: config.server.env.clone(),
        }
    }

    /// The engine follows the newest of aiter's look-up rules.
    fn rules(inspection: &Inspection) -> Rules {
        Rules::new(inspection.op, Revision::H)
    }
}

impl Kernels for Reference {
    fn inspect(&self) -> Result<Inspection, Error> {
        let device = self.device()?;
        let table = self.server_env.get(TABLE_VARIABLE).map(Utf8PathBuf::from);
        let mut identity = BTreeMap::from([
            ("device".to_owned(), device.name.clone()),
            ("arch".to_owned(), device.arch.clone()),
            ("cu_num".to_owned(), device.cu_num.to_string()),
            ("kernels".to_owned(), device.kernel_hash.clone()),
        ]);
        if let Some(table) = &table {
            let bytes = fs_err::read(table)
                .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
            identity.insert("table before".to_owned(), digest(&bytes));
        }
        let path = match &table {
            Some(table) => format!("per-shape kernels from {table}"),
            None => "one fixed kernel for every shape (no table)".to_owned(),
        };
        Ok(Inspection {
            also: Vec::new(),
            dense_left: None,
            identity,
            op: Op::Blockscale,
            gfx: device.arch,
            cu_num: device.cu_num,
            path,
            linear: None,
            table,
            remarks: Vec::new(),
        })
    }

    fn seen(&self, inspection: &Inspection, _: &LogSummary) -> Result<Inspection, Error> {
        Ok(inspection.clone())
    }

    fn engagement_env(
        &self,
        _run: &RunDir,
        _deployment: &Deployment,
        _records: &Utf8Path,
    ) -> Result<Environment, Error> {
        Ok(set(&[("AITER_LOG_TUNED_CONFIG", "1")]))
    }

    fn plan_terms(&self, inspection: &Inspection) -> Result<PlanTerms, Error> {
        let units = f64::from(inspection.cu_num);
        let mut device = Device::measured("CPU", FLOPS_PER_CORE * units, BYTES_PER_CORE * units);
        device.source =
            "assumed: rates of one core times cores; they only weigh shapes against one another";
        Ok(PlanTerms {
            tables: inspection
                .table
                .as_deref()
                .map(read_table)
                .transpose()?
                .into_iter()
                .collect(),
            configs: Vec::new(),
            revision: Revision::H,
            device,
            // On a CPU M = 1 and M = 16 need different kernels, so no row is shared by rounding.
            fold: Fold::Exact,
            cost: Cost::reference(),
        })
    }

    fn tune(
        &self,
        order: &TuneOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Tuned, Error> {
        let incumbent = order.inspection.table.as_deref();
        let backend = Candidates::new(incumbent.map(read_table).transpose()?)
            .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
        let request = self.request(
            &backend,
            order.shapes.to_vec(),
            order.folder.to_owned(),
            Some(order.budget),
        );
        crate::tune::run(&request, observer, order.interrupt)
            .map(Tuned::from)
            .map_err(|error| tune_error(&error))
    }

    fn take(&self, inspection: &Inspection, table: &Utf8Path) -> Result<Vec<TunedTable>, Error> {
        from_elsewhere::take(&[inspection.op], table)
    }

    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &Tuned,
    ) -> Result<Deployment, Error> {
        let mut merged = Table::new("deployed", inspection.op, Revision::H);
        for table in &tuned.tables {
            merged.rows.extend_from_slice(table.csv_rows(inspection.op));
        }
        // What served the environment before stays in the table, unless a tuned row replaces it.
        if let Some(before) = &inspection.table {
            let key = |row: &Row| (row.gfx.clone(), row.cu_num, row.m, row.n, row.k);
            let ours: BTreeSet<_> = merged.rows.iter().map(key).collect();
            let before = read_table(before)?.rows;
            merged
                .rows
                .extend(before.into_iter().filter(|row| !ours.contains(&key(row))));
        }
        let text = merged.to_csv();
        let digest = digest(text.as_bytes());
        let table = run.deploy().join(format!("{}-{digest}.csv", inspection.op));
        let written = fs_err::create_dir_all(run.deploy())
            .and_then(|()| write_atomic(&table, text.as_bytes()))
            .and_then(|()| write_atomic(&run.table(), text.as_bytes()));
        written.map_err(|error| Error::file(&error))?;
        Ok(Deployment {
            env: BTreeMap::from([(TABLE_VARIABLE.to_owned(), table.to_string())]),
            digest,
            rows: merged.rows.len(),
            takes_back: vec![format!(
                "the file {table} and the variable {TABLE_VARIABLE} that names it"
            )],
            table,
            ..Deployment::default()
        })
    }

    fn undo(&self, _run: &RunDir, deployment: &Deployment) -> Result<(), Error> {
        gone(fs_err::remove_file(&deployment.table))
    }

    fn rows(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        shapes: &[Shape],
    ) -> Result<Vec<Option<String>>, Error> {
        let table = read_table(&deployment.table)?;
        let resolver = resolver(&table, inspection)?;
        Ok(shapes
            .iter()
            .map(|shape| resolver.find(shape).row().map(|row| row.m.to_string()))
            .collect())
    }

    fn engagement(
        &self,
        deployed: &Deployed<'_>,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error> {
        let table = read_table(&deployed.deployment.table)?;
        let resolver = resolver(&table, deployed.inspection)?;
        let rows = table.rows.iter().collect();
        Ok(super::engagement_of(&[(&resolver, rows)], log_summary))
    }

    fn kernel_name(&self, candidate: &serde_json::Value) -> String {
        let name = candidate["kernelName"].as_str().unwrap_or("unnamed");
        match candidate["splitK"].as_i64() {
            Some(split_k) if split_k > 0 => format!("{name}, split-K {}", 1_i64 << split_k.min(30)),
            _ => name.to_owned(),
        }
    }
}

impl Reference {
    fn device(&self) -> Result<crate::tune::protocol::Device, Error> {
        let backend = Candidates::default();
        let nowhere = Utf8PathBuf::new();
        let request = self.request(&backend, Vec::new(), nowhere, None);
        crate::tune::pool::look_at_device(&request, &crate::proc::Interrupt::new())
            .map_err(|error| tune_error(&error))
    }

    fn request<'a>(
        &self,
        backend: &'a Candidates,
        shapes: Vec<Shape>,
        folder: Utf8PathBuf,
        budget: Option<Duration>,
    ) -> TuneRequest<'a> {
        TuneRequest {
            backend,
            shapes,
            folder,
            command: WorkerCommand {
                argv: vec![
                    self.keeper.program().to_string(),
                    "reference-worker".to_owned(),
                ],
                launcher: Vec::new(),
                env: BTreeMap::new(),
            },
            keeper: self.keeper.clone(),
            workers: Some(1),
            budget,
            effort: Effort::Quick,
        }
    }
}

fn read_table(path: &Utf8Path) -> Result<Table, Error> {
    let bytes =
        fs_err::read(path).map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
    Table::read(path.as_str(), &bytes, Some(Op::Blockscale))
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))
}

fn resolver<'table>(
    table: &'table Table,
    inspection: &Inspection,
) -> Result<Resolver<'table>, Error> {
    Resolver::new(
        table,
        Reference::rules(inspection),
        &inspection.gfx,
        inspection.cu_num,
    )
    .map_err(|error| Error::caused(ErrorKind::Environment, &error))
}
