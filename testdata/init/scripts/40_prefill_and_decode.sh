#!/bin/bash
# watching: refused
# reading: refused
export SGLANG_USE_AITER=1
python3 -m sglang.launch_server --model-path /m --tp 4 --disaggregation-mode prefill --port 30000 &
python3 -m sglang.launch_server --model-path /m --tp 4 --disaggregation-mode decode --port 30001 &
wait
