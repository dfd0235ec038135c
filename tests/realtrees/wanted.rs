//! What is run: the devices, the changes of a tree, and which release gets which.

/// GPU architecture, HIP version as torch has it, and as `--rocm` takes it.
pub(super) type Device = (&'static str, &'static str, &'static str);
pub(super) const GFX942: Device = ("gfx942", "6.4.43484", "6.4");
pub(super) const GFX950_OLD: Device = ("gfx950", "7.0.51831", "7.0");
pub(super) const GFX950_NEW: Device = ("gfx950", "7.2.26015", "7.2");

/// How a tree is changed before it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// As released, observed by the overlay.
    Observed,
    /// As released, the overlay in front but no variable set.
    Silent,
    /// CK forced in the least invasive way.
    Switched,
    /// The hooks patched in, CK forced by a patch.
    Patched,
    /// The hooks patched in and no variable set.
    PatchedSilent,
    /// One weight goes to CK by a route, the other stays on Triton.
    Routed,
    /// The Triton import swapped for CK by hand, as the playbook has it, then CK forced.
    SwappedByHand,
}

/// The releases whose import can be swapped: CK bound by the name that every GEMM goes through.
const SWAPPABLE: [&str; 5] = ["0.5.6", "0.5.6.post2", "0.5.7", "0.5.8.post1", "0.5.9"];

/// What is tried of a release, the `index`th. At depth `ci` one of each change, and which device gets which goes round
/// with the release; `rest` is the remainder of `full`, which has the trace and the switch on every device.
pub(super) fn wanted(index: usize, release: &str, depth: &str) -> Vec<(Device, Change)> {
    let devices = [GFX942, GFX950_NEW, GFX950_OLD];
    let turn = |at: usize| devices[(index + at) % devices.len()];
    let silent = [Change::Silent, Change::PatchedSilent][index % 2];
    let mut few = vec![
        (turn(0), Change::Observed),
        (turn(1), Change::Switched),
        (turn(2), Change::Patched),
    ];
    let mut rest = vec![
        (turn(1), Change::Observed),
        (turn(2), Change::Observed),
        (turn(0), Change::Switched),
        (turn(2), Change::Switched),
        (GFX942, Change::Routed),
    ];
    // From 0.5.11 on, weights are laid out at load there: the route has to reach that reader too.
    let routed = (GFX950_NEW, Change::Routed);
    if index < 2 {
        few.push((GFX942, silent));
        rest.push(routed);
    } else {
        few.push(routed);
        rest.push((GFX942, silent));
    }
    if SWAPPABLE.contains(&release) {
        few.push((GFX950_OLD, Change::SwappedByHand));
    }
    match depth {
        "ci" => few,
        "rest" => rest,
        _ => [few, rest].concat(),
    }
}
