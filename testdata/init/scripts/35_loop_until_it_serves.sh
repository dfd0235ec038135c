#!/bin/bash
# watching: ready
# reading: right
export SGLANG_USE_AITER=1
python3 -m sglang.launch_server --model-path /m --tp 1 --port 30000 &
for attempt in {1..100}; do
  if curl --noproxy "*" -sf http://127.0.0.1:30000/health; then break; fi
  sleep 0.1
done
python3 -m sglang.bench_serving --port 30000 --num-prompts 4 --max-concurrency 2
kill %1
