#!/bin/bash
# watching: ready
# reading: right
SGLANG_USE_AITER=1 sglang serve --model-path /m --tp 2 --port 30000 &
until curl --noproxy "*" -sf http://127.0.0.1:30000/health > /dev/null; do sleep 0.1; done
vllm bench serve --backend openai --base-url http://127.0.0.1:30000 --model /m --dataset-name random \
  --random-input-len 512 --random-output-len 64 --num-prompts 16 --max-concurrency 8
kill %1
