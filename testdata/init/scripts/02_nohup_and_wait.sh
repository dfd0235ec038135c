#!/bin/bash
# watching: ready
# reading: right
set -euo pipefail
export SGLANG_USE_AITER=1 HSA_NO_SCRATCH_RECLAIM=1
MODEL=/models/DeepSeek-R1
PORT=30000
nohup python3 -m sglang.launch_server --model-path $MODEL --tp 8 \
  --port $PORT --trust-remote-code > server.log 2>&1 &
SERVER=$!
trap "kill $SERVER" EXIT
until curl --noproxy "*" -sf http://127.0.0.1:30000/health > /dev/null; do sleep 0.1; done
python3 -m sglang.bench_serving --backend sglang --port $PORT --dataset-name random --random-input-len 1024 \
  --random-output-len 256 --num-prompts 16 --max-concurrency 4 --output-file results.jsonl
