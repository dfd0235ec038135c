//! `gemmtune reference-worker`: the hidden process that times and checks the reference engine's kernels for `gemmtune
//! tune`; it speaks [`crate::tune::protocol`].
//!
//! One GEMM uses every core this process may run on, so a machine can measure with only one such worker at a time,
//! unless each has cores of its own.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write};
use std::time::Instant;

use gemmtune_refengine::device::{Device as Cpu, split_k_fits};
use gemmtune_refengine::fp8::Bf16;
use gemmtune_refengine::kernels::{self, Kernel, MAX_SPLIT_K};
use gemmtune_refengine::measure::{COLD_BYTES, Dims, Operands, check_with};
use sha2::{Digest as _, Sha256};

use crate::problem::Shape;
use crate::run::error::{Error, ErrorKind};
use crate::tune::protocol::{
    Answer, Candidate, Device, Numerics, Outcome, Preparation, Refusal, Reply, Request,
    RequestKind, STDOUT_MARKER, Samples, Timing, VERSION,
};

/// Arguments of `gemmtune reference-worker`.
#[derive(Debug, clap::Args)]
pub struct ReferenceWorkerArgs {
    /// Index of the device; the CPU is one device whatever the index
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// Where replies go: the number of an inherited descriptor, or `stdout`
    #[arg(long)]
    reply_fd: String,
}

/// Serves requests from standard input until `quit` or its end.
pub fn run(args: &ReferenceWorkerArgs) -> Result<(), Error> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| Error::to(ErrorKind::Environment, what, error)
    };
    // Nothing here prints, so standard output needs only the marker, not redirecting.
    let (path, marker) = match args.reply_fd.as_str() {
        "stdout" => ("/proc/self/fd/1".to_owned(), STDOUT_MARKER),
        number => (format!("/proc/self/fd/{number}"), ""),
    };
    let mut replies = fs_err::OpenOptions::new()
        .append(true)
        .open(path)
        .map_err(failed("open the reply descriptor"))?;
    let mut worker = Worker {
        cpu: Cpu::open().map_err(failed("start the threads"))?,
        index: args.device,
        cold: None,
    };
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(failed("read requests"))?;
        let request: Request = serde_json::from_str(&line)
            .map_err(|error| Error::to(ErrorKind::Bug, "understand a request", error))?;
        let answer = worker.answer(&request.ask);
        let bye = answer == Answer::Bye;
        let reply = Reply {
            id: request.id,
            attempt: request.attempt,
            answer,
        };
        let text = serde_json::to_string(&reply)
            .map_err(|error| Error::to(ErrorKind::Bug, "write a reply", error))?;
        writeln!(replies, "{marker}{text}").map_err(failed("reply"))?;
        if bye {
            break;
        }
    }
    Ok(())
}

struct Worker {
    cpu: Cpu,
    index: u32,
    /// Operands of the shape timed last; creating them takes longer than timing a kernel.
    cold: Option<(Dims, Operands)>,
}

impl Worker {
    fn answer(&mut self, ask: &RequestKind) -> Answer {
        let started = Instant::now();
        match ask {
            RequestKind::Hello { .. } => Answer::Hello {
                device: self.device(),
            },
            RequestKind::Prepare { .. } => Answer::Prepared {
                outcome: Outcome::Done {
                    result: Preparation {
                        seconds: 0.0,
                        cached: true,
                    },
                },
            },
            RequestKind::Time {
                shape,
                candidates,
                timing,
            } => match self.time(shape, candidates, *timing) {
                Ok(outcomes) => Answer::Timed {
                    outcomes,
                    busy_s: started.elapsed().as_secs_f64(),
                    clocks_mhz: Vec::new(),
                    throttle_reasons: None,
                },
                Err(error) => Answer::Failed { error },
            },
            RequestKind::Check { shape, candidates } => match self.check(shape, candidates) {
                Ok(outcomes) => Answer::Checked {
                    outcomes,
                    busy_s: started.elapsed().as_secs_f64(),
                },
                Err(error) => Answer::Failed { error },
            },
            RequestKind::Quit => Answer::Bye,
        }
    }

    fn device(&self) -> Device {
        let listed = self.cpu.kernels();
        let mut digest = Sha256::new();
        for kernel in listed {
            digest.update(format!("{} {}\n", kernel.id(), kernel.name()));
        }
        let default = kernels::default_kernel(self.cpu.isa());
        let mut ordered: Vec<&Kernel> = vec![default];
        ordered.extend(listed.iter().filter(|kernel| *kernel != default));
        Device {
            protocol: VERSION,
            backend: "reference".to_owned(),
            name: cpu_name(),
            arch: self.cpu.gfx().to_owned(),
            cu_num: self.cpu.cu_num(),
            index: self.index,
            visible: 1,
            l2_bytes: COLD_BYTES as u64,
            smem_bytes: 0,
            versions: BTreeMap::from([(
                "gemmtune".to_owned(),
                env!("CARGO_PKG_VERSION").to_owned(),
            )]),
            kernel_hash: digest
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .concat(),
            capabilities: vec![format!("split_k={MAX_SPLIT_K}")],
            prepare_slots: 0,
            candidates: ordered
                .into_iter()
                .map(|kernel| {
                    serde_json::json!({
                        "kernelId": kernel.id(),
                        "splitK": 0,
                        "kernelName": kernel.name(),
                        "tileM": kernel.tile_m(),
                    })
                })
                .collect(),
            shipped: String::new(),
            taken_bytes: None,
        }
    }

    /// The kernel and split of a candidate, if they support a shape with `k` columns.
    fn kernel(&self, candidate: &Candidate, k: usize) -> Result<(&'static Kernel, u32), String> {
        let number = |name: &str| {
            candidate[name]
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(|| format!("no `{name}` in {candidate}"))
        };
        let id = number("kernelId")?;
        let kernel = kernels::by_id(self.cpu.isa(), id)
            .ok_or_else(|| format!("no kernel {id} for {}", self.cpu.gfx()))?;
        let split_k = number("splitK")?;
        if !split_k_fits(split_k, k) {
            return Err(format!("splitK={split_k} does not fit K={k}"));
        }
        Ok((kernel, split_k))
    }

    fn time(
        &mut self,
        shape: &Shape,
        candidates: &[Candidate],
        timing: Timing,
    ) -> Result<Vec<Outcome<Samples>>, String> {
        let dims = dims(shape);
        if self.cold.as_ref().is_none_or(|(made, _)| *made != dims) {
            self.cold = None; // two sets at once may not fit into memory
            let operands = Operands::seeded_cold(dims, 0).map_err(|error| error.to_string())?;
            self.cold = Some((dims, operands));
        }
        let Some((_, operands)) = &self.cold else {
            return Err("the operands were not made".to_owned());
        };
        let mut out = vec![Bf16::NAN; dims.m * dims.n];
        let mut launches = 0;
        let mut launch = |kernel: &Kernel, split_k: u32| -> Result<f64, String> {
            launches += 1;
            let started = Instant::now();
            self.cpu
                .gemm(
                    kernel,
                    split_k,
                    &operands.x,
                    operands.weight(launches),
                    &mut out,
                )
                .map_err(|error| error.to_string())?;
            Ok(started.elapsed().as_secs_f64() * 1e6)
        };
        let kernels: Vec<Result<(&Kernel, u32), String>> = candidates
            .iter()
            .map(|candidate| self.kernel(candidate, dims.k))
            .collect();
        let mut samples = vec![Vec::new(); candidates.len()];
        for (kernel, split_k) in kernels.iter().flatten() {
            for _ in 0..timing.warmups {
                launch(kernel, *split_k)?;
            }
        }
        for round in 0..timing.samples {
            let mut order: Vec<usize> = (0..candidates.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let Ok((kernel, split_k)) = kernels[index] else {
                    continue;
                };
                let first: Option<&f64> = samples[index].first();
                let too_slow = |limit: f64| first.is_some_and(|first| *first > limit);
                if timing.stop_above_us.is_some_and(too_slow) {
                    continue;
                }
                let (mut total, mut count) = (0.0, 0.0);
                while total < timing.min_sample_us || count == 0.0 {
                    total += launch(kernel, split_k)?;
                    count += 1.0;
                }
                samples[index].push(total / count);
            }
        }
        Ok(kernels
            .into_iter()
            .zip(samples)
            .map(|(kernel, us)| match kernel {
                Ok(_) => Outcome::Done {
                    result: Samples { us },
                },
                Err(detail) => unsupported(detail),
            })
            .collect())
    }

    fn check(
        &self,
        shape: &Shape,
        candidates: &[Candidate],
    ) -> Result<Vec<Outcome<Numerics>>, String> {
        let dims = dims(shape);
        let operands = Operands::seeded(dims, 1).map_err(|error| error.to_string())?;
        let once = |kernel: &Kernel, split_k: u32| -> Result<Vec<Bf16>, String> {
            let mut out = vec![Bf16::NAN; dims.m * dims.n];
            self.cpu
                .gemm(kernel, split_k, &operands.x, operands.weight(0), &mut out)
                .map_err(|error| error.to_string())?;
            Ok(out)
        };
        candidates
            .iter()
            .map(|candidate| {
                let (kernel, split_k) = match self.kernel(candidate, dims.k) {
                    Ok(found) => found,
                    Err(detail) => return Ok(unsupported(detail)),
                };
                let check = check_with(&self.cpu, &operands, kernel, split_k)
                    .map_err(|error| error.to_string())?;
                let out = once(kernel, split_k)?;
                let not_finite = out
                    .iter()
                    .filter(|value| !value.to_f32().is_finite())
                    .count();
                Ok(Outcome::Done {
                    result: Numerics {
                        err_ratio: check.wrong_share,
                        not_finite: not_finite as u64,
                        repeatable: out == once(kernel, split_k)?,
                    },
                })
            })
            .collect()
    }
}

fn unsupported<T>(detail: String) -> Outcome<T> {
    Outcome::Refused {
        reason: Refusal::Unsupported,
        detail,
    }
}

fn dims(shape: &Shape) -> Dims {
    Dims {
        m: shape.m as usize,
        n: shape.n as usize,
        k: shape.k as usize,
    }
}

/// The CPU's model name, or its architecture if the system does not report it.
fn cpu_name() -> String {
    fs_err::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
                .map(|(_, name)| name.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
