"""Makes a folder with a model without weights and a `gemmtune.toml` that tunes and compares its fused MoE.

    python3 make.py FOLDER [--model qwen3-30b-a3b] [--layers N] [--experts E] [--inter N] [--tp N] [-- FLAG ...]

The sizes are the model's, the weights random (`--load-format dummy`), the text is noise. `--layers` makes starts shorter; other
`--experts` or `--inter` (the width of an expert before it is split) ask for tables that nobody ships. FLAGs go to the server
command; without any, both arms run SGLang's defaults. Needs the package `tokenizers`.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "sglang-h100"))

from make_model import VOCABULARY, write_tokenizer

#: hidden size, MLP size, layers, attention heads, key-value heads, width of an expert, experts, experts a token
SIZES = {
    "qwen3-30b-a3b": (2048, 6144, 48, 32, 4, 768, 128, 8),
    "qwen3-235b-a22b": (4096, 12288, 94, 64, 4, 1536, 128, 8),
}


def config(sizes, layers, experts, inter):
    """What SGLang reads of a Qwen3-MoE FP8 checkpoint."""
    hidden, mlp, all_layers, heads, kv_heads, own_inter, own_experts, topk = sizes
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "moe_intermediate_size": inter or own_inter,
        "num_experts": experts or own_experts,
        "num_experts_per_tok": topk,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
        "num_hidden_layers": layers or all_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "max_position_embeddings": 40960,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        },
    }


def load(concurrency):
    """Decode at one concurrency, with three times as many requests: with no more than run at once, all prefill and then all decode."""
    prompts = max(4, 3 * concurrency)
    return f"""
[[benchmark.loads]]
name = "decode-{concurrency}"
metric = "median_tpot_ms"
concurrency = {concurrency}
prompts = {prompts}
input_len = 128
output_len = 256
warmup = {concurrency}
seed = {concurrency}
"""


def toml(arguments):
    """The configuration of the run."""
    command = ["python3", "-m", "sglang.launch_server", "--model-path", str(arguments.folder / "model")]
    command += ["--load-format", "dummy", "--host", "127.0.0.1", "--port", "30000", "--random-seed", "1"]
    if arguments.tp > 1:
        command += ["--tp-size", str(arguments.tp)]
    name = f"{arguments.model}-moe"
    text = f"""[workload]
name = "{name}"
model = "{arguments.folder / "model"}"
tp = {arguments.tp}

[server]
command = {json.dumps(command + arguments.flags)}
ready_log = "The server is fired up and ready to roll!"
ready_timeout_s = 540
stop_timeout_s = 1
# Else SGLang compiles DeepGEMM's kernels for minutes before it serves; each load warms up what it runs.
env = {{ SGLANG_JIT_DEEPGEMM_PRECOMPILE = "0" }}

[benchmark]
timeout_s = 240
"""
    text += "".join(load(concurrency) for concurrency in (1, 8, 32, 128))
    return (
        text
        + """
[backend]
kind = "sglang-moe"
python = "python3"

[compare]
metric = "output_throughput"
pairs = 6

[budget]
tune = "8m"
"""
    )


def main():
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda path: pathlib.Path(path).absolute())
    parser.add_argument("--model", choices=SIZES, default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--inter", type=int)
    parser.add_argument("--tp", type=int, default=1)
    ours, flags = sys.argv[1:], []
    if "--" in ours:
        at = ours.index("--")
        ours, flags = ours[:at], ours[at + 1 :]
    arguments = parser.parse_args(ours)
    arguments.flags = flags
    model = arguments.folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    sizes = config(SIZES[arguments.model], arguments.layers, arguments.experts, arguments.inter)
    (model / "config.json").write_text(json.dumps(sizes, indent=1))
    write_tokenizer(model)
    (arguments.folder / "gemmtune.toml").write_text(toml(arguments))


if __name__ == "__main__":
    main()
