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
_use_aiter_gfx95 = _use_aiter and is_gfx95_supported()


def use_aiter_triton_gemm_w8a8_tuned_gfx950(n: int, k: int) -> bool:
    return (n, k) in [
        (512, 7168),
        (7168, 2048),
    ]


if _use_aiter:
    import aiter

    # from aiter import gemm_a8w8_blockscale, gemm_a8w8_bpreshuffle, get_hip_quant
    from aiter import gemm_a8w8_blockscale as gemm_a8w8_blockscale
    from aiter import gemm_a8w8_bpreshuffle, get_hip_quant
    from aiter.ops.triton.gemm_a8w8_blockscale import (
        gemm_a8w8_blockscale as triton_gemm_a8w8_blockscale,
    )

    aiter_per1x128_quant = get_hip_quant(aiter.QuantType.per_1x128)


def dispatch_w8a8_block_fp8_linear() -> Callable:
    backend = envs.FP8_BACKEND.get()
    if backend != "auto":
        return _dispatch_explicit_backend(backend)
    return _dispatch_auto_backend()


def _dispatch_explicit_backend(backend) -> Callable:
    if backend == "aiter":
        return aiter_w8a8_block_fp8_linear
    return triton_w8a8_block_fp8_linear


def _dispatch_auto_backend() -> Callable:
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
    input_2d = input.view(-1, input.shape[-1])
    output_shape = [*input.shape[:-1], weight.shape[0]]

    # an input with a scale is quantised already
    if input_scale is not None:
        q_input = input_2d
        x_scale = input_scale
    else:
        q_input, x_scale = aiter_per1x128_quant(input_2d, quant_dtype=aiter.dtypes.fp8)

    n, k = weight.shape

    if _use_aiter_gfx95:
        use_triton = use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k)
    else:
        use_triton = True

    if use_triton:
        gemm_a8w8_blockscale_op = triton_gemm_a8w8_blockscale
    else:
        gemm_a8w8_blockscale_op = gemm_a8w8_blockscale

    output = gemm_a8w8_blockscale_op(
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
            WQ=weight.T,
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


def apply_fp8_ptpc_linear(
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

    # weight is transposed (K, N)
    output_shape = [*input.shape[:-1], weight.shape[1]]

    q_input, x_scale = aiter.per_token_quant_hip(input_2d, quant_dtype=aiter.dtypes.fp8)

    per_tensor_weights = (weight_scale.numel() == 1) and weight_scale.dim() < 2
    per_tensor_activations = (x_scale.numel() == 1) and x_scale.dim() < 2

    if not (per_tensor_weights and per_tensor_activations):
        # weight is in (N, K)
        output_shape = [*input.shape[:-1], weight.shape[0]]

    output = aiter.gemm_a8w8_bpreshuffle(
        q_input, weight, x_scale, weight_scale, None, input.dtype
    )
    if bias is not None:
        output = output + bias
    return output.view(*output_shape)
