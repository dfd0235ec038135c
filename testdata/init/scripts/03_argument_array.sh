#!/bin/bash
# watching: ready
# reading: right
ARGS=(
  --model-path /models/Qwen3-32B-FP8   # weights
  --tp-size 4
  --port 30000
)
ARGS+=(--mem-fraction-static 0.85)
SGLANG_USE_AITER=1 python3 -m sglang.launch_server "${ARGS[@]}" 2>&1 | tee server.log
