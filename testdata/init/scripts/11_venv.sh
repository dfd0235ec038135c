#!/bin/bash
# watching: ready
# reading: refused
source "$HOME/venv/bin/activate"
export SGLANG_USE_AITER=1
python -m sglang.launch_server --model-path /m --tp 1 --port 30000
