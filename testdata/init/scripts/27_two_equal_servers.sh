#!/bin/bash
# watching: ready
# reading: refused
export SGLANG_USE_AITER=1
for i in 0 1; do
  HIP_VISIBLE_DEVICES=$i python3 -m sglang.launch_server --model-path /m --tp 1 --port $((30000 + i)) &
done
wait
