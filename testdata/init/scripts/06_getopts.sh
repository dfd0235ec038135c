#!/bin/bash
# watching: ready
# reading: refused
# ARGUMENTS: -m /models/a -t 2
while getopts "m:t:" option; do
  case $option in m) MODEL=$OPTARG ;; t) TP=$OPTARG ;; *) exit 1 ;; esac
done
export SGLANG_USE_AITER=1
exec python3 -m sglang.launch_server --model-path "$MODEL" --tp-size "$TP" --port 30000
