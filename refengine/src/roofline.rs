//! What the machine can do at most: floating-point operations and bytes from memory, measured.

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use crate::device::Device;
use crate::kernels;

/// Best of how many tries: other programs can only make a try worse.
const TRIES: usize = 5;

/// The device's measured limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// Multiply-adds in registers on all threads, GFLOP/s.
    pub peak_gflops: f64,
    /// Reading a buffer far larger than the caches on all threads, GB/s.
    pub read_gbps: f64,
    /// Copying such a buffer, bytes read plus bytes written, GB/s.
    pub copy_gbps: f64,
}

impl Roofline {
    /// Measures for about half a second. `bytes` is the size of each buffer; take several times the
    /// last-level cache.
    pub fn measure(device: &Device, bytes: usize) -> Self {
        Self {
            peak_gflops: peak(device),
            read_gbps: read(device, bytes),
            copy_gbps: copy(device, bytes),
        }
    }
}

fn best(mut attempt: impl FnMut() -> f64) -> f64 {
    (0..TRIES).map(|_| attempt()).fold(0.0, f64::max)
}

fn peak(device: &Device) -> f64 {
    // Some ten milliseconds a thread.
    const ROUNDS: usize = 5_000_000;
    let threads = device.cu_num() as usize;
    best(|| {
        let done = Mutex::new(0.0);
        let started = Instant::now();
        device.pool().run(threads, false, &|_, _| {
            let (operations, kept) = kernels::burn(device.isa(), ROUNDS);
            black_box(kept);
            *done.lock().unwrap_or_else(PoisonError::into_inner) += operations;
        });
        let seconds = started.elapsed().as_secs_f64();
        done.into_inner().unwrap_or_else(PoisonError::into_inner) / seconds / 1e9
    })
}

/// Bytes of a task: small enough that threads share the work evenly.
const PIECE: usize = 1 << 20;

fn read(device: &Device, bytes: usize) -> f64 {
    let mut buffer = vec![1u64; bytes / 8];
    best(|| {
        let started = Instant::now();
        device
            .pool()
            .run_pieces(&mut buffer, PIECE / 8, &|_, piece| {
                let (lines, _) = piece.as_chunks::<8>();
                let mut sums = [0u64; 8];
                for line in lines {
                    sums.iter_mut()
                        .zip(line)
                        .for_each(|(sum, value)| *sum ^= value);
                }
                black_box(sums);
            });
        bytes as f64 / started.elapsed().as_secs_f64() / 1e9
    })
}

fn copy(device: &Device, bytes: usize) -> f64 {
    let source = vec![1u64; bytes / 8];
    let mut target = vec![0u64; bytes / 8];
    best(|| {
        let started = Instant::now();
        device
            .pool()
            .run_pieces(&mut target, PIECE / 8, &|index, piece| {
                piece.copy_from_slice(&source[index * PIECE / 8..][..piece.len()]);
            });
        2.0 * bytes as f64 / started.elapsed().as_secs_f64() / 1e9
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive_and_the_burnt_sums_are_what_was_asked_for() {
        for isa in kernels::Isa::available() {
            let device = Device::with(isa, 1).unwrap();
            let roofline = Roofline::measure(&device, 8 << 20);
            assert!(roofline.peak_gflops > 0.0, "{roofline:?}");
            assert!(
                roofline.read_gbps > 0.0 && roofline.copy_gbps > 0.0,
                "{roofline:?}"
            );
            // Every sum starts at its fixed point 1 = 0.999 * 1 + 0.001, two operations a lane and round.
            let (operations, kept) = kernels::burn(isa, 1000);
            assert!(
                (f64::from(kept) * 2000.0 / operations - 1.0).abs() < 1e-2,
                "{operations} {kept}"
            );
        }
    }
}
