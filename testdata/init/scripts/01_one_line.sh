#!/bin/bash
# watching: ready
# reading: right
export SGLANG_USE_AITER=1
python3 -m sglang.launch_server --model-path /models/Qwen3-8B-FP8 --tp 1 --port 30000
