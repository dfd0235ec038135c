#!/bin/bash
# watching: ready
# reading: refused
cat > tracer.sh <<'EOF'
#!/bin/bash
export TRACED=1
exec "$@"
EOF
chmod +x tracer.sh
SGLANG_USE_AITER=1 ./tracer.sh python3 -m sglang.launch_server --model-path /m --tp 8 --port 30000
