#!/bin/bash
# watching: ready
# reading: refused
export SGLANG_USE_AITER=1
TYPE=${1:-launch}
launch() {
  local port=30000
  python3 -m sglang.launch_server --model-path /m --tp 8 --port $port
}
case "$TYPE" in start) launch ;; launch) launch ;; accuracy) launch ;; esac
