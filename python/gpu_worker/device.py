"""What the device is, and the clocks it runs at. Reads only: no setting of the card is ever changed."""

import ctypes
import sys


def facts(torch, index):
    """The device's part of `hello`; protocol names."""
    properties = torch.cuda.get_device_properties(index)
    hip = bool(torch.version.hip)
    if hip:
        arch = properties.gcnArchName.split(":")[0]
    else:
        arch = f"sm_{properties.major}{properties.minor}"
    return {
        "name": torch.cuda.get_device_name(index),
        "arch": arch,
        "cu_num": properties.multi_processor_count,
        "index": index,
        "visible": torch.cuda.device_count(),
        "l2_bytes": int(getattr(properties, "L2_cache_size", 0)) or 50 << 20,
        "smem_bytes": int(getattr(properties, "shared_memory_per_block_optin", 0)),
    }


def taken_bytes(torch, index):
    """Bytes of the device's memory that are taken now, this process's context included."""
    free, total = torch.cuda.mem_get_info(index)
    return total - free


def refusal(torch, error, lost):
    """`(reason, detail)` for a launch that failed on a device that still works; else raises `lost(detail)`."""
    # The first line says what happened; torch adds a page of advice.
    words = f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]
    try:
        torch.cuda.synchronize()
    except Exception as sticky:
        raise lost(f"{words}; then {str(sticky).strip().splitlines()[0]}") from error
    reason = "out_of_resources" if type(error).__name__ == "OutOfResources" else "launch_failed"
    return reason, words


class Clocks:
    """Reads the SM clock and the reasons for throttling through the driver's own library, where there is one."""

    _SM = 1  # NVML_CLOCK_SM, nvml.h

    def __init__(self, uuid):
        self._library = self._handle = None
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
            handle = ctypes.c_void_p()
            # torch writes a UUID without the prefix that NVML wants.
            name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
            if (
                library.nvmlInit_v2() == 0
                and library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)) == 0
            ):
                self._library, self._handle = library, handle
        except (OSError, AttributeError) as error:
            print(f"clocks are not watched: {error}", file=sys.stderr)

    def sm_mhz(self):
        """The SM clock now, MHz; None where it cannot be read."""
        if self._handle is None:
            return None
        value = ctypes.c_uint()
        status = self._library.nvmlDeviceGetClockInfo(self._handle, self._SM, ctypes.byref(value))
        return float(value.value) if status == 0 else None

    def throttle_reasons(self):
        """NVML's bit set of reasons for a lowered clock; None where it cannot be read. Bit 0: idle."""
        if self._handle is None:
            return None
        value = ctypes.c_ulonglong()
        status = self._library.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle, ctypes.byref(value))
        return int(value.value) if status == 0 else None
