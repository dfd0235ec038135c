#!/usr/bin/env python3
"""Ask SGLang's own `try_get_optimal_moe_config` which rows it takes from the tables beside this file.

    cases.py FOLDER > cases.csv        FOLDER holds the unpacked wheels, one `sglang-VERSION` each

The module is executed as it is in the wheel; what it imports is stood in for: torch, Triton's version, the device's name,
server arguments. Nothing is measured, no device is needed.
"""

import importlib.util
import itertools
import json
import logging
import os
import pathlib
import sys
import types

HERE = pathlib.Path(__file__).resolve().parent
FOLDERS = ["srt/layers/moe/fused_moe_triton", "srt/layers/moe/moe_runner/triton_utils"]
RELEASES = ["0.5.5", "0.5.6", "0.5.11", "0.5.12.post1", "0.5.13.post1", "0.5.14", "0.5.16", "0.5.23"]
TRITON = ["3.2.0", "3.6.0", "3.8.0"]
SIZES = [1, 48, 49, 384, 385, 5000, 70000]
H100, H200, H20, MI300X, L40S = (
    "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA H20", "AMD Instinct MI300X", "NVIDIA L40S",
)  # fmt: skip
BLOCK = [128, 128]
# Device, E, N, dtype, block shape, per channel.
LAYERS = [
    (H100, 512, 256, "fp8_w8a8", BLOCK, False),
    (H200, 256, 512, "fp8_w8a8", BLOCK, False),
    (H100, 128, 768, None, None, False),
    (H100, 16, 800, "fp8_w8a8", None, False),
    (H200, 72, 2048, "fp8_w8a8", BLOCK, False),
    (H20, 257, 256, "fp8_w8a8", BLOCK, False),
    (H200, 161, 192, "fp8_w8a8", None, True),
    (H200, 8, 128, "fp8_w8a8", BLOCK, False),
    (H200, 999, 128, "fp8_w8a8", BLOCK, False),
    (MI300X, 999, 128, "fp8_w8a8", BLOCK, False),
    (MI300X, 256, 128, "fp8_w8a8", None, True),
    (L40S, 256, 128, "fp8_w8a8", None, False),
    (L40S, 256, 128, "int8_w8a16", None, False),
]


def stand_in(name, **attributes):
    module = types.ModuleType(name)
    vars(module).update(attributes)
    module.__path__ = []
    sys.modules[name] = module
    return module


class Logger(logging.Logger):
    def warning_once(self, *arguments):
        self.warning(*arguments)


def load(wheels, release, triton, device):
    """The release's module, as a server on this device with this Triton has it."""
    package = wheels / f"sglang-{release}" / "sglang"
    file = next(package / folder / "fused_moe_triton_config.py" for folder in FOLDERS if (package / folder).is_dir()
                and (package / folder / "fused_moe_triton_config.py").exists())  # fmt: skip
    off = types.SimpleNamespace(enable_deterministic_inference=False)
    is_hip = device.startswith("AMD")
    memory = 101376 if device == L40S else 232448
    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        current_device=lambda: 0,
        get_device_properties=lambda _: types.SimpleNamespace(shared_memory_per_block_optin=memory),
    )
    for name in [name for name in sys.modules if name.split(".")[0] in ("torch", "triton", "sglang")]:
        del sys.modules[name]
    stand_in("torch", cuda=cuda, dtype=object, float="float32")
    stand_in("triton", __version__=triton)
    for parent in ("sglang", "sglang.srt", "sglang.srt.layers", "sglang.srt.layers.moe", "sglang.srt.layers.moe.moe_runner"):
        stand_in(parent)
    for name in ("sglang.srt.layers.moe.fused_moe_triton", "sglang.srt.layers.moe.moe_runner.triton_utils"):
        stand_in(name, get_config=lambda: None)
    stand_in("sglang.srt.server_args", get_global_server_args=lambda: off)
    state = types.SimpleNamespace(deterministic=off)
    stand_in("sglang.srt.runtime_context", get_server_args=lambda: off, get_exec=lambda: state)
    stand_in("sglang.srt.utils", get_device_name=lambda: device, is_hip=lambda: is_hip)
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.logger = Logger("config")
    module.logger.addHandler(logging.NullHandler())
    return module


def shown(config):
    names = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages", "USE_TMA")
    assert set(config) <= set(names), config
    return "/".join(f"{config[name]:d}" if name in config else "-" for name in names)


def main(wheels):
    os.environ["SGLANG_MOE_CONFIG_DIR"] = str(HERE)
    print("release,triton,device,E,N,dtype,scales,M,up,down,raises")
    for release, triton, device in itertools.product(RELEASES, TRITON, [H100, H200, H20, MI300X, L40S]):
        module = load(wheels, release, triton, device)
        for of, experts, n, dtype, block, channel in LAYERS:
            if of != device:
                continue
            scales = "128x128" if block else "channel" if channel else ""
            for m in SIZES:
                # Up to 0.5.10 `fused_moe.py` asks for chunks of this size at most.
                asked = min(m, 65536) if FOLDERS[0] in str(module.__file__) else m
                w1, w2 = (experts, 2 * n, 1024), (experts, 1024, n)
                more = {} if release == "0.5.5" else {"per_channel_quant": channel}
                up = down = raises = ""
                try:
                    up, (down, _) = module.try_get_optimal_moe_config(
                        w1, w2, 8, dtype, asked, block_shape=block, return_down_config=True, **more
                    )
                    # The launch: `config=down_config or config`.
                    up, down = shown(up), shown(down or up)
                except AssertionError:
                    raises = "AssertionError"
                print(f"{release},{triton},{device},{experts},{n},{dtype or ''},{scales},{m},{up},{down},{raises}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
