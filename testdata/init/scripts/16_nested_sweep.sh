#!/bin/bash
# watching: ready
# reading: right
export SGLANG_USE_AITER=1
python3 -m sglang.launch_server --model-path /m --tp 8 --port 30000 > server.log 2>&1 &
until curl --noproxy "*" -sf http://127.0.0.1:30000/health > /dev/null; do sleep 0.1; done
for lens in "1024 128" "2048 64"; do
  set -- $lens
  for c in 2 4; do
    python3 -m sglang.bench_serving --port 30000 --dataset-name random --random-input-len $1 --random-output-len $2 \
      --num-prompts 8 --max-concurrency $c
  done
done
kill %1
