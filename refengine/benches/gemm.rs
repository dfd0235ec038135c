//! GFLOP/s of the default and the best kernels beside the machine's measured limits.
//!
//! `cargo bench -p gemmtune-refengine` measures N x K = 4096 x 4096 at M in {1, 8, 64, 512}.
//! `… -- --default` ranks the kernels as the fixed configuration: M = 256, all linear layers of the
//! demo model. `… -- M N K` ranks them on one shape.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::path::Path;

use gemmtune_refengine::config::ModelConfig;
use gemmtune_refengine::device::{Device, split_k_fits};
use gemmtune_refengine::kernels::{self, Kernel};
use gemmtune_refengine::measure::{Dims, Operands, time_with};
use gemmtune_refengine::roofline::Roofline;

/// Bytes of the buffers that bandwidth is measured on.
const BANDWIDTH_BYTES: usize = 256 << 20;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A kernel and split-K exponent with its times on one shape.
struct Timed {
    kernel: &'static Kernel,
    split_k: u32,
    times: Vec<f64>,
}

impl Timed {
    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    fn least(&self) -> f64 {
        self.times.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn name(&self) -> String {
        format!("{} splitK={}", self.kernel.name(), self.split_k)
    }
}

/// Times every kernel a little, then the best few and the default in turns. Best first.
fn race(device: &Device, dims: Dims, last: u32) -> Result<Vec<Timed>, Box<dyn std::error::Error>> {
    let operands = Operands::seeded_cold(dims, 0)?;
    let mut all = Vec::new();
    for kernel in device.kernels() {
        for split_k in (0..=last).filter(|split_k| split_k_fits(*split_k, dims.k)) {
            let times = time_with(
                device,
                &operands,
                kernel,
                split_k,
                if dims.m > 64 { 1 } else { 4 },
            )?;
            all.push(Timed {
                kernel,
                split_k,
                times,
            });
        }
    }
    all.sort_by(|a, b| a.least().total_cmp(&b.least()));
    let fixed = kernels::default_kernel(device.isa());
    let place = all
        .iter()
        .position(|timed| timed.kernel == fixed && timed.split_k == 0);
    let fixed = all.remove(place.ok_or("the default was timed")?);
    all.truncate(4);
    all.push(fixed);
    for timed in &mut all {
        timed.times.clear();
    }
    // At least three turns, at most what half a second allows.
    let turns = (2e10 / (dims.m * dims.n * dims.k) as f64).clamp(3.0, 30.0) as usize;
    for _ in 0..turns {
        for timed in &mut all {
            timed.times.extend(time_with(
                device,
                &operands,
                timed.kernel,
                timed.split_k,
                1,
            )?);
        }
    }
    all.sort_by(|a, b| a.median().total_cmp(&b.median()));
    Ok(all)
}

fn report(device: &Device, dims: Dims, roofline: Roofline, last: u32) -> Outcome {
    let Dims { m, n, k } = dims;
    let fixed = kernels::default_kernel(device.isa());
    for (index, timed) in race(device, dims, last)?.iter().enumerate() {
        let us = timed.median();
        let gflops = 2e-3 * (m * n * k) as f64 / us;
        let gbps = 1e-3 * (n * k) as f64 / us;
        let role = if timed.kernel == fixed && timed.split_k == 0 {
            "default"
        } else if index == 0 {
            "best"
        } else {
            ""
        };
        println!(
            "{m:>4} {us:>10.1} {:>10.1} {gflops:>9.1} {:>5.0} % {gbps:>7.2} {:>5.0} %  {role:<8} {}",
            timed.least(),
            100.0 * gflops / roofline.peak_gflops,
            100.0 * gbps / roofline.read_gbps,
            timed.name(),
        );
    }
    Ok(())
}

/// Ranks the kernels as the one that serves every shape.
fn rank_defaults(device: &Device) -> Outcome {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models/demo");
    let linears = ModelConfig::read(&demo)?.linears();
    let mut totals: Vec<(f64, &Kernel)> = device
        .kernels()
        .iter()
        .map(|kernel| (0.0, kernel))
        .collect();
    for (_, n, k) in linears {
        let operands = Operands::seeded_cold(Dims { m: 256, n, k }, 0)?;
        let mut least = vec![f64::INFINITY; totals.len()];
        // Turn by turn, so that a disturbance does not hit one kernel only; the least is what counts.
        for _ in 0..9 {
            for (least, (_, kernel)) in least.iter_mut().zip(&totals) {
                let times = time_with(device, &operands, kernel, 0, 1)?;
                *least = least.min(times[0]);
            }
        }
        totals
            .iter_mut()
            .zip(least)
            .for_each(|((total, _), least)| *total += least);
    }
    totals.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("M = 256, sum over one demo layer's linears of the least time, us:");
    for (total, kernel) in totals {
        println!("{total:>10.1}  {}", kernel.name());
    }
    Ok(())
}

fn main() -> Outcome {
    let device = Device::open()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--default") {
        return rank_defaults(&device);
    }
    let roofline = Roofline::measure(&device, BANDWIDTH_BYTES);
    println!(
        "{} with {} threads: peak {:.0} GFLOP/s (FMA in registers), memory {:.1} GB/s read, {:.1} GB/s copy",
        device.gfx(),
        device.cu_num(),
        roofline.peak_gflops,
        roofline.read_gbps,
        roofline.copy_gbps,
    );
    println!("   M  median us   least us   GFLOP/s  peak    GB/s   read  role     kernel");
    let numbers: Vec<usize> = arguments
        .iter()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    if let [m, n, k] = numbers[..] {
        return report(&device, Dims { m, n, k }, roofline, kernels::MAX_SPLIT_K);
    }
    for m in [1, 8, 64, 512] {
        report(
            &device,
            Dims {
                m,
                n: 4096,
                k: 4096,
            },
            roofline,
            u32::from(m <= 64),
        )?;
    }
    Ok(())
}
