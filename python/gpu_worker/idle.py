"""Waits until no other process computes on the device.

The kernel of a worker that was killed can run on for a while; what is timed beside it is wrong by any factor. A
device that is ours alone takes as long over an idle spin as its clock says.
"""

import time

SPIN_CYCLES = 2_000_000
"""About 1 ms at 2 GHz."""

LONGEST_US = 8_000.0
"""The spin at a quarter of a gigahertz: slower than any clock of an idle card, so another process had the device."""

IN_A_ROW = 5
"""Spins in a row that must be undisturbed; a neighbour's time slice is milliseconds."""


class Disturbed(Exception):
    """Another process kept the device busy for as long as we were willing to wait."""


def wait_until_idle(spin_us, patience_s, clock=time.monotonic, sleep=time.sleep):
    """Calls `spin_us()` (device time of one spin, µs) until IN_A_ROW are undisturbed; returns the seconds waited."""
    begun = clock()
    in_a_row = 0
    while in_a_row < IN_A_ROW:
        waited = clock() - begun
        if waited > patience_s:
            raise Disturbed(f"another process has kept the device busy for {waited:.0f} s")
        if spin_us() <= LONGEST_US:
            in_a_row += 1
        else:
            in_a_row = 0
            sleep(0.5)
    return clock() - begun


def spinner(torch):
    """`spin_us` on the current device and stream."""

    def spin_us():
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        torch.cuda._sleep(SPIN_CYCLES)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000.0

    return spin_us
