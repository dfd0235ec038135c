#!/bin/bash
# watching: ready
# reading: right
ISL=1024 OSL=1024 CONC=64 TP=8
CTX=$((ISL + OSL + 20))
if [[ $CONC -ge 16 ]]; then R=30; else R=10; fi
if [[ "$ISL" == 1024 && "$OSL" == 1024 ]]; then C=8192; else C=32768; fi
case "$TP" in 8) E=8 ;; *) E=1 ;; esac
export SGLANG_USE_AITER=1
python3 -m sglang.launch_server --model-path /m --tp $TP --ep-size $E --port 30000 --context-length $CTX \
  --scheduler-recv-interval $R --chunked-prefill-size $C --max-running-requests $((2 * CONC))
