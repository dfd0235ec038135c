#!/bin/bash
# watching: ready
# reading: refused
cat > run_server.sh <<EOF
#!/bin/bash
export SGLANG_USE_AITER=1
exec python3 -m sglang.launch_server --model-path /m --tp 4 --port 30000
EOF
bash run_server.sh
