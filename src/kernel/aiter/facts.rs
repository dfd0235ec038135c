//! What serves on an AMD machine: the trees, their capabilities, the device, and the current kernel path.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::Aiter;
use crate::plan::experts::Weights;
use crate::problem::Op;
use crate::proc::Interrupt;
use crate::run::documents::Inspection;
use crate::run::error::{Error, ErrorKind};
use crate::store::digest::short as digest;
use crate::tree::aiter::{self, AiterError};
use crate::tree::doctor::{self, devices, machine};
use crate::tree::era::{self, Era};
use crate::tree::locate::Answer;
use crate::tree::package::{FP8_UTILS, Package};
use crate::tree::{Arch, Rocm, route};

/// The variable of SGLang 0.5.22 and later that selects CK on gfx942.
const USE_CK: &str = "SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK";

/// What is known of the trees without using a GPU.
#[derive(Debug)]
pub(super) struct Trees {
    pub(super) answer: Answer,
    pub(super) sglang: Package,
    pub(super) aiter: doctor::Aiter,
    /// The folder of the package `aiter`.
    pub(super) package: Utf8PathBuf,
}

impl Trees {
    /// The ROCm version that torch was built for, as dispatch compares it.
    pub(super) fn rocm(&self) -> Option<Rocm> {
        self.answer.torch.hip.as_deref().and_then(Rocm::of_version)
    }
}

/// The path on which the operation is reached on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KernelPath {
    pub(super) op: Op,
    /// Whether every GEMM runs Triton today, so that no table is used.
    pub(super) only_triton: bool,
    /// Whether no GEMM runs Triton today, so that there is nothing to switch.
    pub(super) no_triton: bool,
    /// Whether weights are laid out for one kernel when they are loaded.
    pub(super) shuffles: bool,
    pub(super) because: String,
}

impl KernelPath {
    /// Whether GEMMs with this weight (N, K) run Triton today; `triton` lists those that do, if not all do.
    pub(super) fn on_triton(&self, triton: &[(u64, u64)], (n, k): (u32, u32)) -> bool {
        self.only_triton || !self.no_triton && triton.contains(&(u64::from(n), u64::from(k)))
    }
}

impl Aiter {
    /// The trees that the configured server imports, if both can be tuned.
    pub(super) fn trees(&self) -> Result<Trees, Error> {
        let environment =
            |error: &dyn std::error::Error| Error::caused(ErrorKind::Environment, error);
        let answer = self.site.look()?;
        let sglang = self.site.sglang(&answer)?;
        let package = answer
            .folder("aiter")
            .map_err(|error| {
                environment(&error).hint("`gemmtune doctor` says what the interpreter imports")
            })?
            .to_owned();
        if let Some(root) = &self.meant {
            answer
                .imports_from("aiter", root)
                .map_err(|error| environment(&error))?;
        }
        let aiter = doctor::look_at_aiter(
            &package,
            |name| self.site.variable(name),
            &self.site.keeper,
            &Interrupt::new(),
        );
        if let Some(said) = &aiter.unreadable {
            return Err(Error::new(
                ErrorKind::Environment,
                format!("read the aiter checkout: {said}"),
            )
            .hint("`gemmtune doctor` says how to fix it"));
        }
        Ok(Trees {
            answer,
            sglang,
            aiter,
            package,
        })
    }

    pub(super) fn inspect_site(&self) -> Result<Inspection, Error> {
        self.refuse_without_aiter()?;
        let trees = self.trees()?;
        refuse_old(&trees)?;
        let (gfx, cu_num) = self.device()?;
        let config = self.model_config();
        let experts = config.as_ref().and_then(Weights::of_model);
        let experts = experts.filter(|_| self.tunes_experts);
        let way = match self.expected(&trees, &gfx) {
            Err(refusal) if self.op.is_none() && experts == Some(Weights::Blocks) => {
                return Ok(of_experts(&trees, (gfx, cu_num), &refusal));
            }
            way => way?,
        };
        let op = way.op;
        let tables = aiter::tables(&trees.package, op, |name| self.site.variable(name))
            .map_err(|error| aiter_error(&error))?;
        let variable = aiter::variable(op).map_err(|error| aiter_error(&error))?;
        let mut remarks = Vec::from_iter(self.site.slow_starts());
        if let Some(why) = experts.and_then(Weights::why_left) {
            remarks.push(format!("of the model's experts nothing is tuned: {why}"));
        }
        for missing in &tables.missing {
            remarks.push(format!("{variable} names {missing}, which is not there"));
        }
        if tables.from_variable && tables.files.len() > 1 {
            remarks.push(format!(
                "{} joins {} tables: on equal keys aiter rewrites them and stops; the deployed table is one file",
                variable,
                tables.files.len()
            ));
        }
        for lock in &trees.aiter.products.stale_locks {
            remarks.push(format!(
                "{lock} is left by a dead builder, and the next one waits for it; it is put aside when a table is deployed"
            ));
        }
        if trees.answer.torch.hip.is_none() {
            remarks.push(
                "torch is no ROCm build: what SGLang does on a GPU cannot be seen here".to_owned(),
            );
        }
        if self
            .site
            .variable("AITER_REBUILD")
            .is_some_and(|value| value != "0")
        {
            remarks.push(
                "AITER_REBUILD makes every process compile every module it touches: unset it, or each server start takes that long"
                    .to_owned(),
            );
        }
        let mut identity = identity(&trees, &gfx, cu_num);
        identity.extend(tables_fact("tables before", &tables.files)?);
        // The capture may find that the other operation runs.
        if op != Op::PER_CHANNEL
            && let Ok(other) = aiter::tables(&trees.package, Op::PER_CHANNEL, |name| {
                self.site.variable(name)
            })
        {
            identity.extend(tables_fact("per-channel tables before", &other.files)?);
        }
        Ok(Inspection {
            also: Vec::new(),
            dense_left: None,
            identity,
            op,
            gfx,
            cu_num,
            path: way.because,
            linear: None,
            table: match tables.files.as_slice() {
                [only] => Some(only.clone()),
                _ => None,
            },
            remarks,
        })
    }

    /// `fp8_utils.py` accepts only `1` and `true`; `fp8.py` accepts more, so another spelling enables only half of
    /// the path (SGLang 0.5.8.post1 to 0.5.23).
    fn refuse_without_aiter(&self) -> Result<(), Error> {
        let value = self.site.variable("SGLANG_USE_AITER");
        match value.as_deref().map(str::to_ascii_lowercase).as_deref() {
            Some("1" | "true") => Ok(()),
            found => Err(Error::new(
                ErrorKind::Environment,
                match found {
                    None => "the server does not use aiter: SGLANG_USE_AITER is not set".to_owned(),
                    Some(value) => format!(
                        "SGLANG_USE_AITER={value} turns aiter on in one half of SGLang and not in the other"
                    ),
                },
            )
            .hint("set `env = { SGLANG_USE_AITER = \"1\" }` under `[server]`")),
        }
    }

    fn device(&self) -> Result<(String, u32), Error> {
        if let (Some(gfx), Some(cu_num)) = (&self.gfx, self.cu_num) {
            return Ok((gfx.clone(), cu_num));
        }
        let machine = machine::gpus(&self.site.keeper, &Interrupt::new());
        if devices::mixed(&machine.gpus) {
            return Err(Error::new(
                ErrorKind::Environment,
                format!(
                    "{}: aiter stops on unequal devices",
                    devices::listed(&machine.gpus)
                ),
            )
            .hint("make only equal devices visible (ROCR_VISIBLE_DEVICES)"));
        }
        let seen = machine.gpus.first();
        let gfx = self.gfx.clone().or(seen.map(|gpu| gpu.arch.clone()));
        let cu_num = self.cu_num.or(seen.and_then(|gpu| gpu.compute_units));
        gfx.zip(cu_num).ok_or_else(|| {
            Error::new(
                ErrorKind::Environment,
                format!(
                    "architecture and compute units of the GPU are not known: {}",
                    if machine.gpus.is_empty() {
                        machine.nothing()
                    } else {
                        devices::listed(&machine.gpus)
                    }
                ),
            )
            .hint("set `backend.gfx` and `backend.cu_num` in gemmtune.toml, such as \"gfx942\" and 304")
        })
    }

    /// The path of block-FP8 GEMMs on this machine.
    pub(super) fn way(
        &self,
        trees: &Trees,
        gfx: &str,
        rocm: Option<Rocm>,
    ) -> Result<KernelPath, Error> {
        let arch = arch_of(gfx)?;
        let recognised =
            |error: &dyn std::error::Error| Error::caused(ErrorKind::SourceNotRecognised, error);
        let traced = route::trace(&trees.sglang).map_err(|error| {
            recognised(&error).hint("run `gemmtune trace` on the tree for the place")
        })?;
        let source = trees
            .sglang
            .read(FP8_UTILS)
            .map_err(|error| recognised(&error))?;
        let era = era::dispatch(&source)
            .map_err(|error| recognised(&error))?
            .era;
        let path = traced
            .paths
            .iter()
            .find(|path| {
                path.arch == arch
                    && match path.rocm {
                        "<7.2" => rocm != Some(Rocm::From72),
                        ">=7.2" => rocm == Some(Rocm::From72),
                        _ => true,
                    }
            })
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::SourceNotRecognised,
                    format!("no path was traced for {gfx}"),
                )
            })?;
        let kernels: Vec<&str> = match path.kernel {
            "depends" => path
                .choices
                .iter()
                .map(|choice| choice.kernel.as_str())
                .collect(),
            kernel => vec![kernel],
        };
        let switched_on = self.site.variable(USE_CK).is_some_and(|value| {
            matches!(
                value.to_ascii_lowercase().as_str(),
                "1" | "true" | "yes" | "y"
            )
        });
        let by_variable = arch == Arch::Gfx942 && era >= Era::E7;
        let only_triton = if by_variable {
            !switched_on
        } else {
            kernels.iter().all(|kernel| *kernel == "triton")
        };
        let no_triton = if by_variable {
            switched_on
        } else {
            kernels.iter().all(|kernel| *kernel != "triton")
        };
        let shuffles = arch == Arch::Gfx950 && rocm == Some(Rocm::From72) && era >= Era::E3;
        Ok(KernelPath {
            op: if shuffles {
                Op::BlockscaleBpreshuffle
            } else {
                Op::Blockscale
            },
            only_triton,
            no_triton,
            shuffles,
            because: format!("era {}: {}", era.as_str(), path.because),
        })
    }
}

/// A server whose dense GEMMs cannot be tuned, while its model has experts that can be; the capture has the last word on both.
fn of_experts(trees: &Trees, (gfx, cu_num): (String, u32), refusal: &Error) -> Inspection {
    let why = refusal.to_string();
    Inspection {
        identity: identity(trees, &gfx, cu_num),
        op: Op::Blockscale,
        gfx,
        cu_num,
        path: format!("aiter's fused MoE in {}, tuned alone", trees.package),
        linear: None,
        table: None,
        also: Vec::new(),
        remarks: vec![format!("dense GEMMs are left as they are: {why}")],
        dense_left: Some(why),
    }
}

/// The architecture as dispatch distinguishes it.
pub(super) fn arch_of(gfx: &str) -> Result<Arch, Error> {
    match gfx {
        "gfx942" => Ok(Arch::Gfx942),
        _ if gfx.starts_with("gfx95") => Ok(Arch::Gfx950),
        _ => Err(Error::new(
            ErrorKind::Environment,
            format!("SGLang's block-FP8 dispatch is known for gfx942 and gfx950, not for {gfx}"),
        )),
    }
}

/// Refuses an aiter that cannot be tuned safely, and modules of another revision.
fn refuse_old(trees: &Trees) -> Result<(), Error> {
    let missing = &trees.aiter.capabilities.missing;
    if !missing.is_empty() {
        let named: Vec<String> = missing
            .iter()
            .map(|(name, meaning)| format!("{name} ({meaning})"))
            .collect();
        return Err(Error::new(
            ErrorKind::Environment,
            format!(
                "the aiter in {} is too old to be tuned; it lacks {}",
                trees.package,
                named.join("; ")
            ),
        )
        .hint("`gemmtune doctor --fix` realigns the checkout (see `--dry-run` first)"));
    }
    let stale = &trees.aiter.products.other_revision;
    if let Some(first) = stale.first() {
        return Err(Error::new(
            ErrorKind::Environment,
            format!(
                "{} compiled modules are of another aiter commit, first {first}",
                stale.len()
            ),
        )
        .hint("`gemmtune doctor --fix` puts them aside; they are compiled again when first used"));
    }
    Ok(())
}

fn identity(trees: &Trees, gfx: &str, cu_num: u32) -> BTreeMap<String, String> {
    let version = |known: Option<&str>| known.unwrap_or("unknown").to_owned();
    let sglang = trees.sglang.version.as_deref().or(trees
        .answer
        .distribution("sglang")
        .map(|distribution| distribution.version.as_str()));
    let aiter = match &trees.aiter.checkout {
        Some(facts) => facts.head.clone(),
        None => version(
            aiter::named_version(&trees.package).as_deref().or(trees
                .answer
                .distribution("aiter")
                .map(|distribution| distribution.version.as_str())),
        ),
    };
    let torch = &trees.answer.torch;
    let mut facts = BTreeMap::from([
        ("arch".to_owned(), gfx.to_owned()),
        ("cu_num".to_owned(), cu_num.to_string()),
        ("sglang".to_owned(), version(sglang)),
        ("sglang tree".to_owned(), trees.sglang.folder.to_string()),
        ("aiter".to_owned(), aiter),
        ("aiter tree".to_owned(), trees.package.to_string()),
        ("torch".to_owned(), version(torch.version.as_deref())),
        ("python".to_owned(), trees.answer.executable.to_string()),
    ]);
    if let Some(hip) = &torch.hip {
        facts.insert("HIP".to_owned(), hip.clone());
    }
    facts
}

/// The digest of tables, as a fact with this name; `None` without tables.
fn tables_fact(name: &str, tables: &[Utf8PathBuf]) -> Result<Option<(String, String)>, Error> {
    let mut bytes = Vec::new();
    for table in tables {
        bytes.extend(read(table)?);
    }
    Ok((!tables.is_empty()).then(|| (name.to_owned(), digest(&bytes))))
}

pub(super) fn read(path: &Utf8Path) -> Result<Vec<u8>, Error> {
    fs_err::read(path).map_err(|error| Error::caused(ErrorKind::Environment, &error))
}

pub(super) fn aiter_error(error: &AiterError) -> Error {
    Error::caused(ErrorKind::Environment, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rocm_is_told_from_torchs_hip_version() {
        assert_eq!(Rocm::of_version("7.2.26015-abc"), Some(Rocm::From72));
        assert_eq!(Rocm::of_version("7.0.51831"), Some(Rocm::Below72));
        assert_eq!(Rocm::of_version("7.10"), Some(Rocm::From72));
    }

    #[test]
    fn an_unknown_architecture_is_refused() {
        assert_eq!(arch_of("gfx950").unwrap(), Arch::Gfx950);
        insta::assert_snapshot!(arch_of("gfx1250").unwrap_err(), @"SGLang's block-FP8 dispatch is known for gfx942 and gfx950, not for gfx1250");
    }
}
