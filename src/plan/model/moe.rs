//! The routed experts of a model: which fused MoE one rank runs.
//!
//! Sizes: `FusedMoE.__init__` in SGLang's `layers/moe/fused_moe_triton/layer.py`. Experts are split over
//! expert-parallel ranks, the width between the two GEMMs over the rest of tensor parallelism. A shared expert that
//! is computed as an additional routed one is on every rank, and every token uses it.

use serde::{Deserialize, Serialize};

use super::config::ModelError;
use super::known::Family;
use super::layers::Builder;
use super::quant::Scheme;
use crate::problem::fused_moe::{MoeProblem, Scales};
use crate::table::moe::release::Release;

/// The routed experts on one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experts {
    /// The problem of each forward pass.
    #[serde(flatten)]
    pub problem: MoeProblem,
    /// How many layers of the model have it; each is one call per forward.
    pub count: u32,
    /// Shared experts that are computed as routed ones; E and topk include them.
    pub fused_shared: u32,
    /// Why the server would refuse to load the experts this way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
}

impl Experts {
    /// How the problems that ran (each on one rank) compare with what was predicted, as a sentence; `None` if none ran.
    pub fn compared(&self, ran: &[&MoeProblem]) -> Option<String> {
        let sizes =
            |problem: &MoeProblem| (problem.experts, problem.n, problem.hidden, problem.topk);
        let predicted = self.problem.sizes();
        let shared = match self.fused_shared {
            0 => String::new(),
            fused => format!(" (E and topk include {fused} shared, computed as a routed one)"),
        };
        if ran.is_empty() {
            None
        } else if ran
            .iter()
            .any(|problem| sizes(problem) == sizes(&self.problem))
        {
            Some(format!(
                "fused MoE {predicted} ran, as the model's config predicts{shared}"
            ))
        } else {
            let ran: Vec<String> = ran.iter().map(|problem| problem.sizes()).collect();
            Some(format!(
                "the model's config predicts fused MoE {predicted}{shared}, and {} ran: what ran is tuned",
                ran.join(", ")
            ))
        }
    }
}

/// How the server runs a model, as far as it affects whether a shared expert is fused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server<'a> {
    pub(super) class: &'a str,
    pub(super) release: Release,
    /// Whether it runs on AMD with aiter.
    pub(super) is_hip: bool,
    pub(super) ep: u64,
}

/// Shared experts that SGLang computes as routed ones unless disabled: what `determine_num_fused_shared_experts` and
/// `can_fuse_shared_expert` decide in 0.5.5 to 0.5.23. There are `shared` shared experts beside `routed` routed ones;
/// `alike` means that both kinds have one size. DeepEP and similar backends, which never fuse by default, are not
/// considered here.
pub(super) fn fused_shared(server: Server<'_>, routed: u64, shared: u64, alike: bool) -> u64 {
    let Server {
        class,
        release,
        is_hip,
        ep,
    } = server;
    let whole = ep == 1;
    let fuses = match class {
        "DeepseekV3ForCausalLM" => routed == 256 && (whole || is_hip),
        "GlmMoeDsaForCausalLM" => routed == 256 && (whole || is_hip) && release >= Release(0, 5, 9),
        "Glm4MoeForCausalLM" if is_hip => release >= Release(0, 5, 10),
        "Glm4MoeForCausalLM" => whole && release >= Release(0, 5, 6),
        "Glm4vMoeForConditionalGeneration" => whole && !is_hip && release >= Release(0, 5, 7),
        "Glm4MoeLiteForCausalLM" => whole && !is_hip && release >= Release(0, 5, 8),
        "Qwen3NextForCausalLM" if !is_hip => alike && release >= Release(0, 5, 14),
        "Qwen2MoeForCausalLM"
        | "Qwen3NextForCausalLM"
        | "Qwen3_5MoeForCausalLM"
        | "Qwen3_5MoeForConditionalGeneration" => alike && is_hip && release >= Release(0, 5, 11),
        // DeepSeek-V3.2 runs this code, but with a class name other than it compares with; Kimi-K2 has other experts.
        _ => false,
    };
    u64::from(fuses && shared == 1)
}

impl Builder<'_> {
    /// The routed experts: `routed` of them in each of `count` layers.
    pub(super) fn routed_experts(
        &mut self,
        routed: u64,
        count: usize,
        scheme: &Scheme,
    ) -> Result<Option<Experts>, ModelError> {
        if self.family == Family::DeepseekV4 {
            self.note("its experts are FP4, which SGLang's FP8 kernel does not run");
            return Ok(None);
        }
        let config = self.config;
        // Mixtral and MiniMax-M2 have experts only, and their size is under the MLP's key.
        let inter = match config.first(&["moe_intermediate_size"])? {
            Some(inter) => inter,
            None => config.needed("intermediate_size")?,
        };
        let topk = config.first(&["num_experts_per_tok", "top_k_experts", "moe_topk"])?;
        let qwen = config.number("shared_expert_intermediate_size")?;
        let shared = match qwen {
            Some(_) => 1,
            None => config.count("n_shared_experts")?,
        };
        let (tp, ep) = (
            u64::from(self.parallel.tp),
            u64::from(self.parallel.ep.max(1)),
        );
        let class = config.architecture();
        let server = Server {
            class: &class,
            release: self.parallel.release,
            is_hip: self.parallel.is_hip,
            ep,
        };
        let alike = qwen == Some(inter);
        let fused = match self.parallel.shared_experts_fusion {
            Some(false) => 0,
            Some(true) => shared,
            None => fused_shared(server, routed, shared, alike),
        };
        let ranks = (tp / ep).max(1);
        let mut n = inter / ranks;
        let mut rejected = (!inter.is_multiple_of(ranks))
            .then(|| format!("the experts' width {inter} cannot be split over {ranks} ranks"));
        if !routed.is_multiple_of(ep) {
            rejected = Some(format!("{routed} experts cannot be split over {ep} ranks"));
        }
        let scales = match scheme {
            Scheme::Block {
                n: block_n,
                k: block_k,
            } => {
                let side = u64::from(*block_n);
                // `AITER_PADDING_SIZE`, from 0.5.11 on.
                if self.parallel.is_hip && self.parallel.release >= Release(0, 5, 11) {
                    n = n.next_multiple_of(128);
                }
                if !n.is_multiple_of(side) {
                    let reason =
                        format!("the experts' width {n} on a rank is no multiple of {side}");
                    rejected.get_or_insert(reason);
                }
                Scales::Block(*block_n, *block_k)
            }
            Scheme::PerChannel => Scales::Channel,
        };
        let size = |size: u64| u32::try_from(size).ok().filter(|size| *size > 0);
        let (Some(experts), Some(n), Some(hidden), Ok(count)) = (
            size(routed / ep + fused),
            size(n),
            size(self.hidden),
            u32::try_from(count),
        ) else {
            self.note("nothing is left of the routed experts on a rank");
            return Ok(None);
        };
        if count == 0 {
            return Ok(None);
        }
        Ok(Some(Experts {
            problem: MoeProblem {
                experts,
                n,
                hidden: Some(hidden),
                topk: topk.and_then(|topk| size(topk + fused)),
                dtype: "fp8_w8a8".to_owned(),
                scales,
                experts_of_all: None,
            },
            count,
            fused_shared: u32::try_from(fused).unwrap_or(0),
            rejected,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Parallel, Prediction, predict};
    use super::*;

    fn at(model: &str, parallel: &Parallel) -> Experts {
        let path = format!(
            "{}/testdata/models/{model}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        let prediction: Prediction = predict(&fs_err::read(path).unwrap(), parallel).unwrap();
        prediction.experts.unwrap()
    }

    fn sizes(model: &str, parallel: &Parallel) -> (u32, u32, u32) {
        let experts = at(model, parallel);
        let problem = experts.problem;
        (problem.experts, problem.n, problem.topk.unwrap())
    }

    fn cuda(tp: u32, ep: u32, release: &str) -> Parallel {
        Parallel {
            ep,
            release: release.parse().unwrap(),
            ..Parallel::tp(tp)
        }
    }

    fn hip(tp: u32, ep: u32, release: &str) -> Parallel {
        Parallel {
            is_hip: true,
            ..cuda(tp, ep, release)
        }
    }

    #[test]
    fn experts_and_width_are_split_by_their_own_ranks() {
        assert_eq!(sizes("qwen3-30b-a3b", &cuda(1, 1, "0.5.16")), (128, 768, 8));
        assert_eq!(sizes("qwen3-30b-a3b", &cuda(2, 1, "0.5.16")), (128, 384, 8));
        assert_eq!(sizes("qwen3-30b-a3b", &cuda(4, 2, "0.5.16")), (64, 384, 8));
        assert_eq!(sizes("minimax-m2.5", &cuda(4, 1, "0.5.16")), (256, 384, 8));
        assert_eq!(
            sizes("qwen3-235b-a22b", &cuda(8, 8, "0.5.16")),
            (16, 1536, 8)
        );
        let deepseek = at("deepseek-v3", &cuda(8, 1, "0.5.16"));
        assert_eq!(
            (
                deepseek.count,
                deepseek.fused_shared,
                deepseek.problem.hidden
            ),
            (58, 1, Some(7168))
        );
        assert_eq!(deepseek.problem.scales, Scales::Block(128, 128));
    }

    // aiter's shipped tables have the same E and topk: 7168/256/257/9 (V3 TP8), 7168/2048/33/9 (EP8), 4096/1536/16/8
    // (235B EP8).
    #[test]
    fn a_shared_expert_is_fused_as_the_release_and_the_device_do_it() {
        assert_eq!(sizes("deepseek-v3", &cuda(8, 1, "0.5.6")), (257, 256, 9));
        assert_eq!(
            sizes("deepseek-v3", &cuda(8, 8, "0.5.16")),
            (32, 2048, 8),
            "no EP on CUDA"
        );
        assert_eq!(sizes("deepseek-v3", &hip(8, 8, "0.5.16")), (33, 2048, 9));
        assert_eq!(
            sizes("deepseek-v3.2", &cuda(8, 1, "0.5.23")),
            (256, 256, 8),
            "another class"
        );
        assert_eq!(
            sizes("kimi-k2", &cuda(8, 1, "0.5.23")),
            (384, 256, 8),
            "384 experts"
        );
        assert_eq!(sizes("glm-5", &cuda(8, 1, "0.5.16")), (257, 256, 9));
        assert_eq!(sizes("glm-4.6", &cuda(8, 1, "0.5.5")), (160, 192, 8));
        assert_eq!(sizes("glm-4.6", &cuda(8, 1, "0.5.6")), (161, 192, 9));
        assert_eq!(sizes("glm-4.6", &hip(8, 1, "0.5.9")), (160, 192, 8));
        assert_eq!(sizes("glm-4.6", &hip(8, 2, "0.5.10.post1")), (81, 384, 9));
        assert_eq!(
            sizes("qwen3-next-80b-a3b", &cuda(4, 1, "0.5.13.post1")),
            (512, 128, 10)
        );
        assert_eq!(
            sizes("qwen3-next-80b-a3b", &cuda(4, 1, "0.5.14")),
            (513, 128, 11)
        );
        assert_eq!(
            sizes("qwen3-next-80b-a3b", &hip(4, 1, "0.5.11")),
            (513, 128, 11)
        );
        assert_eq!(
            sizes("qwen3.5-35b-a3b", &cuda(4, 1, "0.5.23")),
            (256, 128, 8)
        );
        let off = Parallel {
            shared_experts_fusion: Some(false),
            ..cuda(8, 1, "0.5.16")
        };
        assert_eq!(sizes("deepseek-v3", &off), (256, 256, 8));
    }

    #[test]
    fn what_the_server_refuses_to_load_is_said() {
        let refused = |parallel: &Parallel| at("qwen3-235b-a22b", parallel).rejected;
        insta::assert_snapshot!(refused(&cuda(8, 1, "0.5.16")).unwrap(), @"the experts' width 192 on a rank is no multiple of 128");
        assert_eq!(refused(&cuda(4, 1, "0.5.16")), None);
        assert_eq!(
            at("qwen3-235b-a22b", &hip(8, 1, "0.5.11")).problem.n,
            256,
            "padded for aiter"
        );
        let glm = at("glm-4.6", &cuda(16, 1, "0.5.16"));
        assert_eq!(
            (glm.problem.n, glm.problem.scales, glm.rejected),
            (96, Scales::Channel, None)
        );
        let thirds = at("qwen3-30b-a3b", &cuda(3, 3, "0.5.16"));
        insta::assert_snapshot!(thirds.rejected.unwrap(), @"128 experts cannot be split over 3 ranks");
    }

    #[test]
    fn a_dense_model_has_no_experts() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/models/qwen3-8b.json");
        let prediction = predict(&fs_err::read(path).unwrap(), &Parallel::tp(1)).unwrap();
        assert_eq!(prediction.experts, None);
    }

    #[test]
    fn what_ran_is_compared_with_the_prediction() {
        let fused = at("deepseek-v3", &cuda(8, 1, "0.5.16"));
        let whole = fused.problem.clone();
        let experts_of_four = at("deepseek-v3", &cuda(8, 4, "0.5.16"));
        let sentences = [
            fused.compared(&[]),
            fused.compared(&[&whole]),
            experts_of_four.compared(&[&whole]),
        ];
        insta::assert_debug_snapshot!(sentences, @r#"
        [
            None,
            Some(
                "fused MoE E=257 N=256 K=7168 topk=9 ran, as the model's config predicts (E and topk include 1 shared, computed as a routed one)",
            ),
            Some(
                "the model's config predicts fused MoE E=64 N=1024 K=7168 topk=8, and E=257 N=256 K=7168 topk=9 ran: what ran is tuned",
            ),
        ]
        "#);
    }
}
