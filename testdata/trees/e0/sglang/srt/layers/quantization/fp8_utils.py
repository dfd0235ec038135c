import logging
from typing import Callable, List, Optional

import torch

from sglang.srt.environ import envs
from sglang.srt.utils import (
    get_bool_env_var,
    get_hip_version,
    is_cuda,
    is_gfx95_supported,
    is_gfx942_supported,
    is_hip,
)

logger = logging.getLogger(__name__)

_is_hip = is_hip()
_is_cuda = is_cuda()

_use_aiter = get_bool_env_var("SGLANG_USE_AITER") and _is_hip

if _use_aiter:
    import aiter
    from aiter import gemm_a8w8_blockscale, gemm_a8w8_bpreshuffle, get_hip_quant

    aiter_per1x128_quant = get_hip_quant(aiter.QuantType.per_1x128)


def dispatch_w8a8_block_fp8_linear() -> Callable:
    if _use_aiter:
        return aiter_w8a8_block_fp8_linear
    return triton_w8a8_block_fp8_linear


def aiter_w8a8_block_fp8_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    block_size: List[int],
    weight_scale: torch.Tensor,
    input_scale: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    assert input_scale is None
    input_2d = input.view(-1, input.shape[-1])
    output_shape = [*input.shape[:-1], weight.shape[0]]

    q_input, x_scale = aiter_per1x128_quant(input_2d, quant_dtype=aiter.dtypes.fp8)

    output = gemm_a8w8_blockscale(
        q_input, weight, x_scale, weight_scale, dtype=input.dtype
    )

    if bias is not None:
        output += bias

    return output.to(dtype=input_2d.dtype).view(*output_shape)


def triton_w8a8_block_fp8_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    block_size: List[int],
    weight_scale: torch.Tensor,
    input_scale: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    raise NotImplementedError


def apply_fp8_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    input_scale: Optional[torch.Tensor] = None,
    input_scale_ub: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    cutlass_fp8_supported: bool = False,
    use_per_token_if_dynamic: bool = False,
    pad_output: Optional[bool] = None,
    compressed_tensor_quant: bool = False,
) -> torch.Tensor:
    input_2d = input.view(-1, input.shape[-1])
    output_shape = [*input.shape[:-1], weight.shape[1]]

    qinput, x_scale = per_token_group_quant_fp8(
        input_2d, group_size=input_2d.shape[1]
    )

    per_tensor_weights = weight_scale.numel() == 1
    per_tensor_activations = (x_scale.numel() == 1) and x_scale.dim() < 2

    if (
        use_per_token_if_dynamic
        and not per_tensor_weights
        and not per_tensor_activations
        and _use_aiter
    ):
        output = gemm_a8w8_bpreshuffle(
            XQ=qinput,
            WQ=weight,
            x_scale=x_scale,
            w_scale=weight_scale,
            dtype=input.dtype,
        )
        if bias is not None:
            output += bias
        return output.view(*output_shape)

    output = torch._scaled_mm(
        qinput,
        weight,
        out_dtype=input.dtype,
        scale_a=x_scale,
        scale_b=weight_scale,
        bias=bias,
    )
    return output.view(*output_shape)
