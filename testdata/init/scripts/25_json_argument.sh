#!/bin/bash
# watching: ready
# reading: right
export SGLANG_USE_AITER=1
python3 -m sglang.launch_server --model-path /m --tp 1 --port 30000 \
  --json-model-override-args '{"rope_scaling": {"factor": 4.0}, "x": [1, 2]}'
