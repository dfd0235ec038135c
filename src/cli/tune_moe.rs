//! `gemmtune tune --backend sglang-moe`: which problems are raced, and how.

use camino::Utf8Path;

use crate::problem::fused_moe::MoeProblem;
use crate::run::error::{Error, ErrorKind};
use crate::table::moe::counted;
use crate::tune::backends::sglang_moe::task::MoeTask;
use crate::tune::backends::sglang_moe::{Engine, Routing, SglangMoe};

/// Arguments of `gemmtune tune` for fused MoE.
#[derive(Debug, clap::Args)]
pub(super) struct MoeArgs {
    /// How tokens are spread over experts while candidates are timed (sglang-moe)
    #[arg(long, value_enum, default_value = "uniform", value_name = "ROUTING")]
    routing: RoutingArg,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RoutingArg {
    /// Every expert as likely as any other, as in a balanced model
    Uniform,
    /// The r-th expert r times less likely than the first
    Skewed,
}

impl MoeArgs {
    /// The backend for scale blocks of `block`; `tables` are those in use.
    pub(super) fn backend(
        &self,
        block: (u32, u32),
        tables: Option<&Utf8Path>,
        engine: Engine,
    ) -> SglangMoe {
        let mut backend = SglangMoe::new(block);
        backend.tables = tables.map(Utf8Path::to_owned);
        backend.routing = match self.routing {
            RoutingArg::Uniform => Routing::Uniform,
            RoutingArg::Skewed => Routing::Skewed,
        };
        backend.engine = engine;
        backend
    }
}

/// The fused-MoE problems of a shapes file, each with its M.
pub(super) fn problems(
    path: &Utf8Path,
    bytes: &[u8],
    block: (u32, u32),
) -> Result<Vec<MoeTask>, Error> {
    let read = counted::read(bytes)
        .map_err(|error| Error::to(ErrorKind::Usage, &format!("read `{path}`"), error))?;
    if read.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("`{path}` names no fused MoE to tune"),
        )
        .hint("`gemmtune plan --model config.json --tp N --moe-output MOE.csv` or `gemmtune shapes LOG -o S.csv` writes such a file"));
    }
    read.iter()
        .map(|counted| task(&counted.problem, counted.m, block))
        .collect()
}

fn task(problem: &MoeProblem, m: Option<u32>, block: (u32, u32)) -> Result<MoeTask, Error> {
    let refused = |why: &str| Error::new(ErrorKind::Usage, format!("tune `{problem}`: {why}"));
    let (Some(_), Some(_), Some(m)) = (problem.hidden, problem.topk, m) else {
        return Err(refused("the file does not say its M, K and topk").hint(
            "SGLang's log names E and N only; `gemmtune plan --model` and a capture know the rest, or fill the cells in",
        ));
    };
    MoeTask::of(problem, m, block)
        .map_err(|why| refused(&why).hint("`--block` names other scale blocks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "op,M,N,K,dtype,records,E,topk,scales\n";

    fn read(line: &str) -> Result<Vec<MoeTask>, String> {
        let text = format!("{HEADER}{line}\n");
        problems(Utf8Path::new("s.csv"), text.as_bytes(), (128, 128))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn problems_are_read_and_what_cannot_be_raced_is_refused_by_name() {
        let tasks = read("fused_moe_triton,64,768,2048,fp8_w8a8,1,128,8,128x128").unwrap();
        assert_eq!(
            tasks[0].to_string(),
            "fused_moe_triton E=128 N=768 K=2048 topk=8 M=64"
        );
        let said = [
            "fused_moe_triton,,192,,fp8_w8a8,1,128,,128x128",
            "fused_moe_triton,64,768,2048,fp8_w8a8,1,128,8,channel",
            "fused_moe_triton,64,768,2048,,1,128,8,",
            "fused_moe_triton,64,192,5120,fp8_w8a8,1,160,8,128x128",
        ]
        .map(|line| read(line).unwrap_err());
        insta::assert_snapshot!(said.join("\n"), @"
        tune `fused_moe_triton E=128 N=192`: the file does not say its M, K and topk
        tune `fused_moe_triton E=128 N=768 K=2048 topk=8`: only FP8 experts (dtype fp8_w8a8) with scales of 128x128 are raced
        tune `fused_moe_triton E=128 N=768 K=2048 topk=8`: only FP8 experts (dtype fp8_w8a8) with scales of 128x128 are raced
        tune `fused_moe_triton E=160 N=192 K=5120 topk=8`: SGLang would not load it: N and K have to be multiples of 128 and 128, and topk at most E
        ");
    }

    #[test]
    fn a_file_without_a_fused_moe_is_refused_before_a_worker_is_started() {
        let said = ["", "M,N,K\n16,256,512\n", HEADER].map(|text| {
            let file = Utf8Path::new("s.csv");
            let error = problems(file, text.as_bytes(), (128, 128)).unwrap_err();
            error.to_string()
        });
        insta::assert_snapshot!(said.join("\n"), @"
        `s.csv` names no fused MoE to tune
        `s.csv` names no fused MoE to tune
        `s.csv` names no fused MoE to tune
        ");
    }
}
