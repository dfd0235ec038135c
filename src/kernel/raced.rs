//! What the kernel families share that gemmtune races itself: the GPU worker in the server's interpreter.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::tune_error;
use crate::proc::Interrupt;
use crate::run::error::{Error, ErrorKind};
use crate::server::sglang::Site;
use crate::tune::backends::Backend;
use crate::tune::backends::sglang_triton::worker_files;
use crate::tune::protocol::Device;
use crate::tune::task::Task;
use crate::tune::worker::WorkerCommand;
use crate::tune::{Effort, TuneEvent, TuneOutcome, TuneRequest};

/// A race of `backend` over `shapes`, its files in `folder`.
pub(crate) fn request<'a, P: Task>(
    site: &Site,
    backend: &'a dyn Backend<P>,
    shapes: Vec<P>,
    folder: Utf8PathBuf,
    budget: Option<Duration>,
) -> Result<TuneRequest<'a, P>, Error> {
    fs_err::create_dir_all(&folder).map_err(|error| Error::file(&error))?;
    Ok(TuneRequest {
        backend,
        shapes,
        command: worker(site, &folder)?,
        folder,
        keeper: site.keeper.clone(),
        workers: None,
        budget,
        effort: Effort::Quick,
    })
}

/// Races `shapes`, with the race's files in `folder`.
pub(crate) fn race<P: Task>(
    site: &Site,
    backend: &dyn Backend<P>,
    shapes: Vec<P>,
    (folder, budget): (Utf8PathBuf, Duration),
    observer: &mut dyn FnMut(&TuneEvent<P>),
    interrupt: &Interrupt,
) -> Result<TuneOutcome<P>, Error> {
    let request = request(site, backend, shapes, folder, Some(budget))?;
    crate::tune::run(&request, observer, interrupt).map_err(|error| tune_error(&error))
}

/// The facts about `device` that must not change during a run.
pub(crate) fn identity(device: &Device) -> BTreeMap<String, String> {
    let mut identity = BTreeMap::from([
        ("device".to_owned(), device.name.clone()),
        ("arch".to_owned(), device.arch.clone()),
        ("cu_num".to_owned(), device.cu_num.to_string()),
        ("kernel".to_owned(), device.kernel_hash.clone()),
    ]);
    identity.extend(device.versions.clone());
    identity
}

fn worker(site: &Site, folder: &Utf8Path) -> Result<WorkerCommand, Error> {
    let worker = worker_files::write(folder).map_err(|error| Error::file(&error))?;
    Ok(WorkerCommand {
        argv: vec![site.python.to_string(), worker.to_string()],
        launcher: Vec::new(),
        env: site.environment().clone(),
    })
}

/// The first device, as seen by the worker that will time kernels on it.
pub(crate) fn device<P: Task>(site: &Site, backend: &dyn Backend<P>) -> Result<Device, Error> {
    let scratch = tempfile::tempdir().map_err(|error| Error::file(&error))?;
    let folder = Utf8PathBuf::try_from(scratch.path().to_owned())
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
    let request = request(site, backend, Vec::new(), folder, None)?;
    crate::tune::pool::look_at_device(&request, &Interrupt::new())
        .map_err(|error| tune_error(&error))
}
