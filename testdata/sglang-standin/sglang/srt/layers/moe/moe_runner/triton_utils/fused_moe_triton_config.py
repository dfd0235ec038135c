import json
import logging
import os
from functools import lru_cache

import triton
from standin import cost

logger = logging.getLogger(__name__)
DEFAULT = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 32, "num_warps": 4, "num_stages": 3}


def get_config_file_name(E, N, dtype, block_shape=None, per_channel_quant=False, down_moe=False):
    device, block = cost.DEVICE.replace(" ", "_"), f",block_shape={block_shape}" if block_shape else ""
    return f"E={E},N={N},device_name={device},dtype={dtype}{block}{'_down' if down_moe else ''}.json"


@lru_cache
def get_moe_configs(E, N, dtype, block_n, block_k, per_channel_quant=False, down_moe=False):
    name = get_config_file_name(E, N, dtype, [block_n, block_k], per_channel_quant, down_moe=down_moe)
    folder = os.environ.get("SGLANG_MOE_CONFIG_DIR") or os.path.dirname(os.path.realpath(__file__))
    path = os.path.join(folder, "configs", f"triton_{triton.__version__.replace('.', '_')}", name)
    if os.path.exists(path):
        logger.info("Using MoE kernel config from %s.", path)
        with open(path) as file:
            return {int(m): row for m, row in json.load(file).items()}
    if down_moe:
        logger.warning("Using MoE kernel config with down_moe=False. Performance might be sub-optimal! Config file not found at %s", path)
    else:
        logger.warning("Using default MoE kernel config. Performance might be sub-optimal! Config file not found at %s", path)
    return None


def try_get_optimal_moe_config(
    w1_shape, w2_shape, top_k, dtype, M, is_marlin=False, block_shape=None, per_channel_quant=False, return_down_config=False
):
    E, _, N = w2_shape
    up = get_moe_configs(E, N, dtype, *block_shape, per_channel_quant, False)
    config = dict(up[min(up, key=lambda row: abs(row - M))]) if up else dict(DEFAULT)
    if not return_down_config:
        return config
    down = get_moe_configs(E, N, dtype, *block_shape, per_channel_quant, True) if up else None
    down_config = dict(down[min(down, key=lambda row: abs(row - M))]) if down else None
    return config, (down_config, max((row["BLOCK_SIZE_M"] for row in down.values()), default=None) if down else None)
