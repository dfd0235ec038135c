#!/bin/bash
# watching: ready
# reading: refused
export SGLANG_USE_AITER=1
NAME=$(basename "$PWD" | cut -c1-1)
CMD="python3 -m sglang.launch_server --model-path /models/$NAME --tp 8 --port 30000"
eval "$CMD" &
PID=$!
until curl --noproxy "*" -sf http://127.0.0.1:30000/health > /dev/null; do sleep 0.1; done
kill $PID
