from __future__ import annotations

import logging

import torch

from sglang.srt.layers.quantization.fp8_utils import dispatch_w8a8_block_fp8_linear
from sglang.srt.utils import get_bool_env_var, is_hip, print_warning_once

_is_hip = is_hip()
_use_aiter = get_bool_env_var("SGLANG_USE_AITER") and _is_hip

if _use_aiter:
    from aiter.fused_moe import fused_moe
    from aiter.ops.shuffle import shuffle_weight
    from sglang.srt.layers.quantization.fp8_utils import (
        _use_aiter_bpreshuffle_gfx95,
        aiter_w8a8_block_fp8_linear,
        use_aiter_triton_gemm_w8a8_tuned_gfx950,
    )

logger = logging.getLogger(__name__)


class Fp8LinearMethod:
    def __init__(self, quant_config):
        self.quant_config = quant_config
        self.use_marlin = False
        self.use_mxfp8 = getattr(self.quant_config, "use_mxfp8", False)
        self.block_quant = (
            self.use_mxfp8 or self.quant_config.weight_block_size is not None
        )
        self.w8a8_block_fp8_linear = None
        if not self.use_mxfp8:
            self.w8a8_block_fp8_linear = dispatch_w8a8_block_fp8_linear()
        self.use_per_token_if_dynamic = False

    def process_weights_after_loading_block_quant(self, layer):
        if _use_aiter and self.w8a8_block_fp8_linear is aiter_w8a8_block_fp8_linear:
            n, k = layer.weight.shape
            if _use_aiter_bpreshuffle_gfx95:
                if not use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k):
                    layer.weight.copy_(shuffle_weight(layer.weight, (16, 16)))

    def apply(self, layer, x, bias=None):
        if isinstance(x, tuple):
            return self.w8a8_block_fp8_linear(
                input=x[0],
                weight=layer.weight,
                block_size=self.quant_config.weight_block_size,
                weight_scale=layer.weight_scale_inv,
                input_scale=x[1],
                bias=bias,
            )
        return self.w8a8_block_fp8_linear(
            input=x,
            weight=layer.weight,
            block_size=self.quant_config.weight_block_size,
            weight_scale=layer.weight_scale_inv,
            input_scale=None,
            bias=bias,
        )
