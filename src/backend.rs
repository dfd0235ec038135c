//! Which server and which kernels a configuration names.

use std::sync::Arc;

use crate::engine::ports::{Backend, FusedMoeKernels};
use crate::kernel;
use crate::proc::Keeper;
use crate::run::error::{Error, ErrorKind};
use crate::server;
use crate::server::sglang::Site;
use crate::workload::config::{self, BackendKind, FusedMoe};

/// The backend of a configuration.
pub fn of(config: &config::Config, keeper: &Keeper) -> Result<Backend, Error> {
    Ok(match config.backend.kind {
        BackendKind::Reference => {
            let kernels = kernel::reference::Reference::new(config, keeper);
            Backend {
                server: Arc::new(server::reference::Reference),
                kernels: Some(Arc::new(kernels)),
                fused_moe: None,
            }
        }
        BackendKind::SglangTriton => {
            let site = Arc::new(Site::new(config, keeper)?);
            Backend {
                server: site.clone(),
                fused_moe: beside(config, &site),
                kernels: Some(Arc::new(kernel::sglang_triton::SglangTriton::new(site))),
            }
        }
        BackendKind::SglangFamilies => {
            let site = Arc::new(Site::new(config, keeper)?);
            Backend {
                server: site.clone(),
                fused_moe: beside(config, &site),
                kernels: Some(Arc::new(kernel::sglang_families::SglangFamilies::new(site))),
            }
        }
        BackendKind::SglangMoe => {
            if config.backend.table.is_some() {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "`run --table` judges no table of fused MoE",
                )
                .hint("leave `--table` out: a race of its sizes takes minutes"));
            }
            let site = Arc::new(Site::new(config, keeper)?);
            Backend {
                server: site.clone(),
                kernels: None,
                fused_moe: Some(Arc::new(kernel::sglang_moe::SglangMoe::new(site, config))),
            }
        }
        BackendKind::AiterTriton => {
            let site = Arc::new(Site::new(config, keeper)?);
            Backend {
                server: site.clone(),
                kernels: Some(Arc::new(kernel::aiter_triton::AiterTriton::new(
                    site, config,
                ))),
                fused_moe: None,
            }
        }
        BackendKind::Aiter => {
            let site = Arc::new(Site::new(config, keeper)?);
            let aiter = Arc::new(kernel::aiter::Aiter::new(site.clone(), config));
            let experts = || -> Arc<dyn FusedMoeKernels> {
                Arc::new(kernel::aiter::AiterMoe::new(aiter.clone()))
            };
            Backend {
                server: site,
                fused_moe: is_wanted(config).then(experts),
                kernels: Some(aiter),
            }
        }
    })
}

/// Whether a fused MoE should be tuned beside the dense GEMMs. A table from elsewhere is judged alone.
fn is_wanted(config: &config::Config) -> bool {
    config.backend.fused_moe == FusedMoe::Tune && config.backend.table.is_none()
}

/// SGLang's Triton kernels for the fused MoE, if they should be tuned beside the dense GEMMs.
fn beside(config: &config::Config, site: &Arc<Site>) -> Option<Arc<dyn FusedMoeKernels>> {
    is_wanted(config).then(|| {
        Arc::new(kernel::sglang_moe::SglangMoe::new(site.clone(), config))
            as Arc<dyn FusedMoeKernels>
    })
}
