#!/bin/bash
# watching: ready
# reading: asked
export SGLANG_USE_AITER=1
python3 -m sglang.launch_server --config server.yaml
