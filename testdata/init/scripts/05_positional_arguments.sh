#!/bin/bash
# watching: ready
# reading: asked
# ARGUMENTS: /models/Llama-3.1-70B-FP8 4
MODEL=$1
TP=${2:-8}
SGLANG_USE_AITER=1 python3 -m sglang.launch_server --model-path "$MODEL" --tp "$TP" --port 30000
