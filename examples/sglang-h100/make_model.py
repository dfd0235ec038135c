"""Writes a model folder without weights: config.json and a word-level tokenizer, for `--load-format dummy`.

    python3 make_model.py model [qwen3-8b|qwen3-14b]

The GEMMs have the real model's sizes; the text is noise. Needs the package `tokenizers`.
"""

import json
import pathlib
import sys

#: hidden size, MLP size, layers, attention heads
SIZES = {"qwen3-8b": (4096, 12288, 36, 32), "qwen3-14b": (5120, 17408, 40, 40)}
VOCABULARY = 151936


def config(hidden, mlp, layers, heads):
    """What SGLang reads of a Qwen3 FP8 checkpoint."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
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


def write_tokenizer(folder):
    """A word for every token id, so that whatever the model says can be written down."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"t{index}": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "t0", "eos_token": "t1", "unk_token": "t2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def main(arguments):
    folder = pathlib.Path(arguments[0])
    sizes = SIZES[arguments[1] if len(arguments) > 1 else "qwen3-8b"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(*sizes), indent=1))
    write_tokenizer(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
