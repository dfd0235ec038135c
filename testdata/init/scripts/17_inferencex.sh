#!/bin/bash
# watching: ready
# reading: refused
# EP_SIZE and friends come from a matrix
export MODEL=/models/DeepSeek-R1 TP=8 CONC=64 ISL=1024 OSL=1024 PORT=30000 RESULT=run.json
export SGLANG_USE_AITER=1
version=$(uname -r | cut -d. -f1)
if [[ "$version" == "" || $version -lt 177 ]]; then export HSA_NO_SCRATCH_RECLAIM=1; fi
python3 -m sglang.launch_server --model-path=$MODEL --host=0.0.0.0 --port=$PORT --tensor-parallel-size=$TP \
  --trust-remote-code --chunked-prefill-size=196608 --mem-fraction-static=0.8 > server.log 2>&1 &
until curl --noproxy "*" -sf http://127.0.0.1:30000/health > /dev/null; do sleep 0.1; done
python3 "$HOME/benchmark_serving.py" --model $MODEL --backend vllm --base-url "http://0.0.0.0:$PORT" --dataset-name random \
  --random-input-len $ISL --random-output-len $OSL --random-range-ratio 0.8 --num-prompts $((CONC * 10)) \
  --max-concurrency $CONC --request-rate inf --ignore-eos --save-result --result-dir . --result-filename $RESULT
kill %1
