"""The per-channel FP8 linears of a real SGLang tree, as layers build and load them; `run_tree.py` runs this.

Three ways lead to aiter's `gemm_a8w8_bpreshuffle`: compressed-tensors with one scale per output channel, the same with an
activation that a fused kernel has quantised (0.5.11 and later), and a per-tensor checkpoint with
SGLANG_USE_AITER_FP8_PER_TOKEN (0.5.8.post1 and later). Each is a layer of SGLang's own, from `create_weights` on.
"""

import torch

#: N is a multiple of 64, or releases from 0.5.22 on take torch's GEMM.
WEIGHT = (448, 1024)

COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "ignore": [],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {
                "num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True,
            },
        }
    },
}  # fmt: skip


def cases(case, linear_module, fp8, fp8_utils, m_values):
    """What `case` says of each way, each M."""
    if not hasattr(fp8_utils, "apply_fp8_ptpc_linear"):
        return []  # 0.5.5, which `run` refuses
    layers = [("ptpc", compressed(linear_module))]
    per_token = per_token_layer(linear_module, fp8, fp8_utils)
    if per_token is not None:
        layers.append(("per-token", per_token))
    results = []
    for what, (layer, wq, w_scale) in layers:
        n, k = WEIGHT
        for m in m_values:
            x = activation(m, k)
            every = torch.arange(m)

            def expected():
                import aiter

                q, scales = aiter.LAST_QUANTISED
                return (q.double() * scales.double()) @ (wq.double() * w_scale.double()).t()

            results.append(case(what, m, n, k, lambda: layer(x)[0], expected, every))
            if what == "ptpc" and takes_pairs(fp8_utils):
                pair = quantised(x)
                # Through the function: from 0.5.18 on the layer takes a pair for one with a scale per tensor.
                apply = lambda: fp8_utils.apply_fp8_ptpc_linear(pair, layer.weight, layer.weight_scale)
                results.append(case("ptpc-tuple", m, n, k, apply, expected, every))
    return results


def compressed(linear_module):
    from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

    n, k = WEIGHT
    layer = linear_module.ReplicatedLinear(
        k, n, bias=False, params_dtype=torch.bfloat16, quant_config=CompressedTensorsConfig.from_config(COMPRESSED),
        prefix="model.layers.0.mlp.down_proj",
    )  # fmt: skip
    wq, w_scale = weight()
    layer.weight.data.copy_(wq)
    layer.weight_scale.data.copy_(w_scale)
    layer.quant_method.process_weights_after_loading(layer)
    return layer, wq, w_scale


def per_token_layer(linear_module, fp8, fp8_utils):
    """A per-tensor checkpoint that is served per token; None in releases that cannot."""
    config = fp8.Fp8Config(is_checkpoint_fp8_serialized=True, activation_scheme="dynamic")
    n, k = WEIGHT
    layer = linear_module.ReplicatedLinear(
        k, n, bias=False, params_dtype=torch.bfloat16, quant_config=config, prefix="model.layers.0.mlp.gate_proj"
    )
    if not getattr(layer.quant_method, "use_aiter_fp8_per_token", False):
        return None
    # The only quantiser on this way is a Triton kernel, which needs a GPU.
    for module in (fp8, fp8_utils):
        if hasattr(module, "per_token_group_quant_fp8"):
            module.per_token_group_quant_fp8 = lambda x, *_, **__: quantised(x)
    wq, _ = weight()
    scale = torch.tensor(0.01)
    layer.weight.data.copy_(wq)
    layer.weight_scale.data.fill_(scale)
    layer.quant_method.process_weights_after_loading(layer)
    return layer, wq, scale.expand(n, 1)


def takes_pairs(fp8_utils):
    import inspect

    return "isinstance(input, tuple)" in inspect.getsource(inspect.unwrap(fp8_utils.apply_fp8_ptpc_linear))


def activation(m, k):
    return (torch.randn(m, k) * torch.rand(m, 1).add_(0.25)).bfloat16()


def quantised(x):
    import aiter

    return aiter.per_token_quant_hip(x, quant_dtype=aiter.dtypes.fp8)


def weight():
    """As in a checkpoint: float8_e4m3fn with one scale per row, rows of very different sizes."""
    n, k = WEIGHT
    w = torch.randn(n, k) * torch.rand(n, 1).add_(0.1)
    scale = w.abs().amax(dim=1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    return (w / scale).to(torch.float8_e4m3fn), scale
