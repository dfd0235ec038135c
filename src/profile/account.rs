//! Assigns every moment of a device to kernels, exactly once.
//!
//! Kernels of several streams overlap, and so do kernels of one stream when one begins before the previous one has
//! ended. A moment in which several run is shared equally among them, so that the times of all kernels add up to the
//! time in which anything ran.

use super::class::Operation;
use super::steps::{Phase, Step};
use super::trace::Kernel;

/// Time of one phase, µs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Account {
    /// Total time of its steps.
    pub(super) total: f64,
    /// Time in which anything ran.
    pub(super) busy: f64,
    /// For each kernel name: its share of the time, and how often it began.
    pub(super) kernels: Vec<(f64, u64)>,
    /// Time in which a kernel of each operation ran, alone or not.
    pub(super) ran: [f64; Operation::ALL.len()],
    /// Time in which a kernel of any of them ran.
    pub(super) any_ran: f64,
}

/// What begins or ends; ends sort before beginnings of the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    KernelEnds,
    StepEnds,
    StepBegins,
    KernelBegins,
}

const PHASES: usize = Phase::ALL.len();

/// The accounts of the phases of `steps`, in the order of [`Phase::ALL`]. Kernels refer to `names` by index, and
/// `operation` returns the operation of a kernel.
pub(super) fn accounts(
    kernels: &[Kernel],
    steps: &[Step],
    names: usize,
    operation: &dyn Fn(u32) -> Option<Operation>,
) -> [Account; PHASES] {
    let mut edges: Vec<(f64, Edge, usize)> = Vec::with_capacity(2 * (kernels.len() + steps.len()));
    for (index, kernel) in kernels.iter().enumerate() {
        edges.push((kernel.start, Edge::KernelBegins, index));
        // A kernel of zero duration still counts as begun.
        if kernel.end > kernel.start {
            edges.push((kernel.end, Edge::KernelEnds, index));
        }
    }
    let lasting = |(_, step): &(usize, &Step)| step.end > step.start;
    for (index, step) in steps.iter().enumerate().filter(lasting) {
        edges.push((step.start, Edge::StepBegins, index));
        edges.push((step.end, Edge::StepEnds, index));
    }
    edges.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));

    let mut accounts: [Account; PHASES] = std::array::from_fn(|_| Account {
        kernels: vec![(0.0, 0); names],
        ..Account::default()
    });
    // For each phase, the time assigned to a kernel that has run from the beginning: a kernel's share is the
    // difference between the values at its end and its beginning.
    let mut given = [0.0; PHASES];
    let mut given_before = vec![[0.0; PHASES]; kernels.len()];
    let mut running = 0_u64;
    let mut running_for = [0_u64; Operation::ALL.len()];
    let mut phase: Option<usize> = None;
    let mut now = edges.first().map_or(0.0, |edge| edge.0);
    for (time, edge, index) in edges {
        if let Some(phase) = phase {
            let passed = time - now;
            let account = &mut accounts[phase];
            account.total += passed;
            if running > 0 {
                account.busy += passed;
                given[phase] += passed / running as f64;
            }
            for (ran, running) in account.ran.iter_mut().zip(running_for) {
                if running > 0 {
                    *ran += passed;
                }
            }
            if running_for.iter().any(|running| *running > 0) {
                account.any_ran += passed;
            }
        }
        now = time;
        match edge {
            Edge::StepBegins => phase = Some(steps[index].phase as usize),
            Edge::StepEnds => phase = None,
            Edge::KernelBegins => {
                let kernel = &kernels[index];
                if let Some(phase) = phase {
                    accounts[phase].kernels[kernel.name as usize].1 += 1;
                }
                if kernel.end > kernel.start {
                    given_before[index] = given;
                    running += 1;
                    if let Some(operation) = operation(kernel.name) {
                        running_for[operation as usize] += 1;
                    }
                }
            }
            Edge::KernelEnds => {
                let kernel = &kernels[index];
                for (phase, account) in accounts.iter_mut().enumerate() {
                    account.kernels[kernel.name as usize].0 +=
                        given[phase] - given_before[index][phase];
                }
                running -= 1;
                if let Some(operation) = operation(kernel.name) {
                    running_for[operation as usize] -= 1;
                }
            }
        }
    }
    accounts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(start: f64, end: f64, name: u32) -> Kernel {
        Kernel {
            start,
            end,
            name,
            correlation: 0,
        }
    }

    fn step(start: f64, end: f64, phase: Phase) -> Step {
        Step {
            start,
            end,
            phase,
            requests: None,
            tokens: None,
        }
    }

    fn moe_is_zero(name: u32) -> Option<Operation> {
        match name {
            0 => Some(Operation::FusedMoe),
            1 => Some(Operation::DenseFp8),
            _ => None,
        }
    }

    #[test]
    fn a_moment_in_which_two_kernels_run_is_counted_once() {
        // 0..10 MoE, 5..15 another on a second stream, 20..25 dense; a step of 30.
        let kernels = [
            kernel(0.0, 10.0, 0),
            kernel(5.0, 15.0, 2),
            kernel(20.0, 25.0, 1),
        ];
        let steps = [step(0.0, 30.0, Phase::Decode)];
        let [decode, prefill, ..] = accounts(&kernels, &steps, 3, &moe_is_zero);
        assert_eq!((decode.total, decode.busy), (30.0, 20.0));
        assert_eq!(decode.kernels, [(7.5, 1), (5.0, 1), (7.5, 1)]);
        let [moe, dense] = decode.ran;
        assert_eq!((moe, dense, decode.any_ran), (10.0, 5.0, 15.0));
        assert_eq!((prefill.total, prefill.busy), (0.0, 0.0));
    }

    #[test]
    fn a_kernel_that_reaches_into_the_next_step_is_part_of_both() {
        let kernels = [kernel(0.0, 10.0, 0), kernel(10.0, 10.0, 1)];
        let steps = [
            step(0.0, 4.0, Phase::Prefill),
            step(4.0, 12.0, Phase::Decode),
        ];
        let [decode, prefill, ..] = accounts(&kernels, &steps, 2, &moe_is_zero);
        assert_eq!((prefill.total, prefill.kernels[0]), (4.0, (4.0, 1)));
        // The first began in the prefill; the kernel of zero duration began here.
        assert_eq!((decode.total, decode.kernels[0]), (8.0, (6.0, 0)));
        assert_eq!(decode.kernels[1], (0.0, 1));
        // Kernels outside of steps are assigned to none.
        let [decode, ..] = accounts(
            &[kernel(20.0, 30.0, 0)],
            &[step(0.0, 12.0, Phase::Decode)],
            1,
            &moe_is_zero,
        );
        assert_eq!((decode.total, decode.busy), (12.0, 0.0));
    }
}
