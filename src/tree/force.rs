//! How a kernel can be forced, per era, architecture and ROCm version: one decision for `trace`, `switch` and the
//! overlay.
//!
//! A [`Plan`] is independent of the mechanism: the overlay applies its steps at import, `switch --mode patch` writes
//! them into the tree. What makes the table long are silent failures: a shape predicate that two modules read,
//! weights laid out at load, scales whose strides CK ignores, and shapes for which CK returns NaN above some M.

use serde::Serialize;

use super::era::{Dispatch, Era, PREDICATE};
use super::flow::{Arch, Kernel, Rocm};
use super::route::ForceCk;

/// aiter's CK entry point, as `module:attribute`.
pub const AITER_CK: &str = "aiter:gemm_a8w8_blockscale";
/// aiter's Triton kernel for the same operation, as `module:attribute`.
pub const AITER_TRITON: &str = "aiter.ops.triton.gemm_a8w8_blockscale:gemm_a8w8_blockscale";

/// Largest M for which CK is correct on gfx95x below ROCm 7.2, by (N, K): SGLang 0.5.16, `fp8_utils.py`,
/// `_AITER_GFX95_CK_W8A8_MAX_SAFE_M`. Older releases have fewer entries or none.
pub const SAFE_M: [(u64, u64, u64); 4] = [
    (2560, 4096, 2048),
    (4096, 1024, 4096),
    (4096, 2048, 2048),
    (4608, 4096, 512),
];

/// How a kernel is forced, least invasive first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Means {
    /// The tree does it already.
    None,
    /// An environment variable that the release reads.
    Env,
    /// Code loaded into the server, the tree untouched.
    Overlay,
    /// An edit of the tree.
    Patch,
    /// Not possible without wrong results.
    Refused,
}

impl Means {
    /// The name used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Env => "env",
            Self::Overlay => "overlay",
            Self::Patch => "patch",
            Self::Refused => "refused",
        }
    }
}

/// The kernel to force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// CK: plain, or bpreshuffle where the tree lays weights out for it.
    Ck,
    /// aiter's Triton kernel.
    Triton,
}

/// GEMMs of one (N, K) that are routed elsewhere: all M, or those within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Output features.
    pub n: u64,
    /// Input features.
    pub k: u64,
    /// Smallest M, inclusive.
    pub min_m: Option<u64>,
    /// Largest M, inclusive.
    pub max_m: Option<u64>,
}

/// A change to `fp8_utils`, applied in order before weights are loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Step {
    /// Binds `name` to the kernel `to` (`module:attribute`, `self` being `fp8_utils`).
    Rebind {
        /// Name in `fp8_utils`.
        name: String,
        to: String,
    },
    /// Routes GEMMs that match a rule from `name` to `to`.
    Route {
        /// Name in `fp8_utils`.
        name: String,
        to: String,
        /// A GEMM that matches any of them goes to `to`.
        rules: Vec<Rule>,
    },
    /// Makes the shape predicate return `value` (true is Triton), except for the shapes in `except`.
    Predicate {
        value: bool,
        /// Shapes for which it returns the opposite.
        except: Vec<(u64, u64)>,
    },
    /// `set_force_ck_w8a8(True)`: the predicate returns false in every module.
    SetForceCk,
}

/// What to do to force a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The least invasive way that works.
    pub means: Means,
    pub detail: String,
    /// Variables to set for the server.
    pub env: Vec<(String, String)>,
    /// Variables that must not be set.
    pub unset: Vec<String>,
    /// Steps for the overlay or the patch; empty where environment variables suffice.
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub struct SwitchRequest<'a> {
    pub to: Target,
    /// If not empty, only these GEMMs go to CK and all others to Triton.
    pub routes: &'a [Rule],
    pub arch: Arch,
    /// The ROCm version, where known.
    pub rocm: Option<Rocm>,
    /// Whether an environment switch may be used; false if a patch or an overlay was requested.
    pub env: bool,
}

/// Why a request cannot be fulfilled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForceError {
    /// The answer depends on the ROCm version, which is not known.
    #[error("what must be done on {} depends on the ROCm version", .0.as_str())]
    NeedsRocm(Arch),
    /// Routes with a bound on M where weights are laid out at load.
    #[error(
        "N={n}, K={k} cannot be split at an M: with ROCm 7.2 on gfx95x this tree lays the weight out \
         for one kernel when it is loaded"
    )]
    WholeShapesOnly {
        /// Output features.
        n: u64,
        /// Input features.
        k: u64,
    },
    /// Routes specify where CK runs, so they contradict Triton everywhere.
    #[error("routes name the GEMMs that go to CK, and Triton was asked for")]
    RoutesToTriton,
    /// The leaf does not use the name that would have to be bound.
    #[error("the tree imports no {0} kernel under a name that could be bound")]
    NoName(&'static str),
}

/// The plan for `request` on a tree with this dispatch and this table of safe M.
pub fn plan(
    dispatch: &Dispatch<'_>,
    tree_safe_m: &[(u64, u64, u64)],
    request: &SwitchRequest<'_>,
) -> Result<Plan, ForceError> {
    if request.to == Target::Triton && !request.routes.is_empty() {
        return Err(ForceError::RoutesToTriton);
    }
    let era = dispatch.era;
    let name = |kernel, what| {
        dispatch
            .alias(kernel)
            .map(str::to_owned)
            .ok_or(ForceError::NoName(what))
    };
    let planner = Planner {
        era,
        request,
        guard: guard(request, tree_safe_m),
        ck: if era == Era::E0 {
            AITER_CK.to_owned()
        } else {
            dispatch
                .alias(Kernel::Ck)
                .map_or_else(|| AITER_CK.to_owned(), |alias| format!("self:{alias}"))
        },
        ck_name: dispatch.alias(Kernel::Ck).map(str::to_owned),
        // The only name through which GEMMs go in E0 and E1, the Triton branch's name later.
        main: match era {
            Era::E0 => name(Kernel::Ck, "CK")?,
            _ => name(Kernel::Triton, "Triton")?,
        },
    };
    match request.to {
        Target::Triton => planner.triton(),
        Target::Ck if request.routes.is_empty() => planner.all_ck(),
        Target::Ck => planner.routed(),
    }
}

/// The largest M up to which CK is safe: needed only on gfx95x below ROCm 7.2, or with an unknown ROCm.
fn guard(request: &SwitchRequest<'_>, tree: &[(u64, u64, u64)]) -> Vec<Rule> {
    if request.arch == Arch::Gfx942 || request.rocm == Some(Rocm::From72) {
        return Vec::new();
    }
    SAFE_M
        .into_iter()
        .filter(|row| !tree.contains(row))
        .map(|(n, k, m)| Rule {
            n,
            k,
            min_m: Some(m + 1),
            max_m: None,
        })
        .collect()
}

struct Planner<'a> {
    era: Era,
    request: &'a SwitchRequest<'a>,
    guard: Vec<Rule>,
    /// CK as a target.
    ck: String,
    ck_name: Option<String>,
    /// The name to bind.
    main: String,
}

/// Whether the tree lays weights out for bpreshuffle on this machine.
fn shuffles(era: Era, arch: Arch, rocm: Option<Rocm>) -> Result<bool, ForceError> {
    match (arch, rocm) {
        (Arch::Gfx942, _) => Ok(false),
        (Arch::Gfx950, _) if era <= Era::E2 => Ok(false),
        (Arch::Gfx950, Some(rocm)) => Ok(rocm == Rocm::From72),
        (Arch::Gfx950, None) => Err(ForceError::NeedsRocm(arch)),
    }
}

fn rebind(name: &str, to: &str) -> Step {
    Step::Rebind {
        name: name.to_owned(),
        to: to.to_owned(),
    }
}

fn overlay(steps: Vec<Step>, detail: impl Into<String>) -> Plan {
    Plan {
        means: Means::Overlay,
        detail: detail.into(),
        env: Vec::new(),
        unset: Vec::new(),
        steps,
    }
}

fn nothing(detail: &str) -> Plan {
    Plan {
        means: Means::None,
        ..overlay(Vec::new(), detail)
    }
}

/// The variable of 0.5.22 and later that chooses CK on gfx942; EnvBool, default off.
const USE_CK: &str = "SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK";
/// The variable of 0.5.23 that lets a kernel of the tree take five shapes at M <= 32; default on.
const SMALL_M: &str = "SGLANG_ROCM_SMALLM_FP8_BS";

const CK_ALREADY: &str = "CK is what this tree calls";

impl Planner<'_> {
    fn guarded(&self, name: &str) -> Option<Step> {
        (!self.guard.is_empty()).then(|| Step::Route {
            name: name.to_owned(),
            to: AITER_TRITON.to_owned(),
            rules: self.guard.clone(),
        })
    }

    fn all_ck(&self) -> Result<Plan, ForceError> {
        let shuffles = shuffles(self.era, self.request.arch, self.request.rocm)?;
        let gfx942 = self.request.arch == Arch::Gfx942;
        if self.era == Era::E0 {
            // Nothing to force; but no such tree has the guard.
            return Ok(self.guarded(&self.main).map_or_else(
                || nothing(CK_ALREADY),
                |guard| {
                    overlay(
                        vec![guard],
                        format!("{CK_ALREADY}; Triton above the M that is safe below ROCm 7.2"),
                    )
                },
            ));
        }
        if gfx942 && self.era >= Era::E7 && self.request.env {
            return Ok(Plan {
                means: Means::Env,
                env: vec![(USE_CK.to_owned(), "1".to_owned())],
                ..overlay(Vec::new(), format!("{USE_CK}=1"))
            });
        }
        let through_predicate = shuffles || (!gfx942 && self.era >= Era::E4);
        if !through_predicate {
            let mut steps = vec![rebind(&self.main, &self.ck)];
            steps.extend(self.guarded(&self.main));
            if !gfx942 && self.era == Era::E2 {
                steps.extend(self.ck_name.as_deref().and_then(|name| self.guarded(name)));
            }
            let mut detail = format!("bind {} to {}", self.main, self.ck);
            if !self.guard.is_empty() {
                detail.push_str(", with Triton above the M that is safe below ROCm 7.2");
            }
            if gfx942 && self.era >= Era::E5 {
                detail.push_str(" (set_force_ck_w8a8 has no effect on gfx942)");
            }
            return Ok(overlay(steps, detail));
        }
        let (step, mut detail) = if self.era >= Era::E5 {
            (
                Step::SetForceCk,
                "set_force_ck_w8a8(True) before weights load".to_owned(),
            )
        } else {
            (
                Step::Predicate {
                    value: false,
                    except: Vec::new(),
                },
                format!("{PREDICATE} answers False in fp8_utils and fp8 before weights load"),
            )
        };
        let mut steps = vec![step];
        if shuffles {
            detail.push_str(" (CK bpreshuffle)");
        } else if let Some(guarded) = self.ck_name.as_deref().and_then(|name| self.guarded(name)) {
            steps.push(guarded);
            detail.push_str(", with Triton above the M that is safe below ROCm 7.2");
        }
        let mut plan = overlay(steps, detail);
        self.without_small_m(&mut plan);
        Ok(plan)
    }

    fn routed(&self) -> Result<Plan, ForceError> {
        let shuffles = shuffles(self.era, self.request.arch, self.request.rocm)?;
        let mut plan = if shuffles {
            let bounded = |route: &&Rule| route.min_m.is_some() || route.max_m.is_some();
            if let Some(route) = self.request.routes.iter().find(bounded) {
                return Err(ForceError::WholeShapesOnly {
                    n: route.n,
                    k: route.k,
                });
            }
            let except = self.request.routes.iter().map(|route| (route.n, route.k));
            overlay(
                vec![Step::Predicate {
                    value: true,
                    except: except.collect(),
                }],
                format!("{PREDICATE} answers False for the routed shapes, True for all others"),
            )
        } else {
            let mut steps = Vec::new();
            if self.era == Era::E0 {
                steps.push(rebind(&self.main, AITER_TRITON));
            } else if self.request.arch == Arch::Gfx950 && !matches!(self.era, Era::E1 | Era::E3) {
                steps.push(Step::Predicate {
                    value: true,
                    except: Vec::new(),
                });
            }
            steps.push(Step::Route {
                name: self.main.clone(),
                to: self.ck.clone(),
                rules: self
                    .request
                    .routes
                    .iter()
                    .map(|route| self.capped(*route))
                    .collect(),
            });
            let detail = format!(
                "{} goes to {} for the routed GEMMs and stays Triton for all others",
                self.main, self.ck
            );
            overlay(steps, detail)
        };
        if self.era >= Era::E7 && self.request.arch == Arch::Gfx942 {
            plan.unset.push(USE_CK.to_owned());
        }
        self.without_small_m(&mut plan);
        Ok(plan)
    }

    /// A route as a rule, limited to the M that are safe.
    fn capped(&self, route: Rule) -> Rule {
        let unsafe_machine =
            self.request.arch == Arch::Gfx950 && self.request.rocm != Some(Rocm::From72);
        let safe = SAFE_M
            .into_iter()
            .find(|(n, k, _)| unsafe_machine && (*n, *k) == (route.n, route.k))
            .map(|(_, _, m)| m);
        Rule {
            max_m: match (route.max_m, safe) {
                (Some(asked), Some(safe)) => Some(asked.min(safe)),
                (asked, safe) => asked.or(safe),
            },
            ..route
        }
    }

    fn triton(&self) -> Result<Plan, ForceError> {
        if self.era == Era::E0 {
            return Ok(overlay(
                vec![rebind(&self.main, AITER_TRITON)],
                format!("bind {} to aiter's Triton kernel", self.main),
            ));
        }
        if self.request.arch == Arch::Gfx942 {
            let mut plan = nothing("Triton is what this tree calls on gfx942");
            if self.era >= Era::E7 {
                plan.detail = format!("{} unless {USE_CK} is set", plan.detail);
                plan.unset.push(USE_CK.to_owned());
            }
            return Ok(plan);
        }
        if self.era == Era::E1 {
            return Ok(nothing("Triton is what this tree calls"));
        }
        if self.era == Era::E3 && !shuffles(self.era, self.request.arch, self.request.rocm)? {
            return Ok(nothing("Triton is what this tree calls below ROCm 7.2"));
        }
        let mut plan = overlay(
            vec![Step::Predicate {
                value: true,
                except: Vec::new(),
            }],
            format!("{PREDICATE} answers True in fp8_utils and fp8 before weights load"),
        );
        self.without_small_m(&mut plan);
        Ok(plan)
    }

    /// 0.5.23: one of the tree's own kernels takes five shapes at M <= 32 before the dispatch.
    fn without_small_m(&self, plan: &mut Plan) {
        if self.era == Era::E7b
            && self.request.arch == Arch::Gfx950
            && self.request.rocm != Some(Rocm::Below72)
        {
            plan.env.push((SMALL_M.to_owned(), "0".to_owned()));
            plan.detail = format!(
                "{}, and {SMALL_M}=0 so that a kernel of the tree does not take five shapes at M <= 32",
                plan.detail
            );
        }
    }
}

/// How CK is forced on `arch`, over both ROCm versions that dispatch distinguishes.
pub fn summary(dispatch: &Dispatch<'_>, tree_safe_m: &[(u64, u64, u64)], arch: Arch) -> ForceCk {
    let on = |rocm| {
        plan(
            dispatch,
            tree_safe_m,
            &SwitchRequest {
                to: Target::Ck,
                routes: &[],
                arch,
                rocm: Some(rocm),
                env: true,
            },
        )
    };
    let (means, detail) = match (on(Rocm::Below72), on(Rocm::From72)) {
        // A guard around what the tree calls anyway forces nothing.
        (Ok(below), Ok(from)) if dispatch.era == Era::E0 && below != from => (
            from.means,
            format!(
                "{}; below ROCm 7.2 `switch` adds Triton above the M that is safe",
                from.detail
            ),
        ),
        (Ok(below), Ok(from)) if below.detail == from.detail => (below.means, below.detail),
        (Ok(below), Ok(from)) => (
            below.means.max(from.means),
            format!("ROCm >= 7.2: {}; below: {}", from.detail, below.detail),
        ),
        (Err(error), _) | (_, Err(error)) => (Means::Refused, error.to_string()),
    };
    ForceCk {
        arch,
        means,
        detail,
    }
}
