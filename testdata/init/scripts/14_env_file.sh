#!/bin/bash
# watching: ready
# reading: refused
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/common.env"
cd "$HERE"
python3 -m sglang.launch_server --model-path "$MODEL" --tp "$TP" --port 30000
