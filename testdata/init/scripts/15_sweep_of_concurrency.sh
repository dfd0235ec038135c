#!/bin/bash
# watching: ready
# reading: right
export SGLANG_USE_AITER=1
python3 -m sglang.launch_server --model-path /m --tp 8 --port 30000 &
SERVER=$!
until curl --noproxy "*" -sf http://127.0.0.1:30000/health > /dev/null; do sleep 0.1; done
for c in 1 8 32; do
  python3 -m sglang.bench_serving --backend sglang --port 30000 --dataset-name random --random-input-len 1024 \
    --random-output-len 128 --random-range-ratio 1 --num-prompts $((c * 4)) --max-concurrency $c --output-file c$c.jsonl
done
kill $SERVER
