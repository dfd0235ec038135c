"""Plays `sglang.launch_server`: its options, its readiness, a rank with a title. Computes nothing."""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def arguments(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path", "--model")
    parser.add_argument("--tp-size", "--tensor-parallel-size", "--tp", type=int, default=1)
    parser.add_argument("--ep-size", "--expert-parallel-size", "--ep", type=int, default=1)
    parser.add_argument("--dp-size", "--data-parallel-size", "--dp", type=int, default=1)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--disaggregation-mode", default="null")
    parser.add_argument("--fp8-gemm-backend", dest="fp8_gemm_runner_backend", default="auto")
    parser.add_argument("--context-length", type=int)
    parser.add_argument("--chunked-prefill-size", type=int)
    parser.add_argument("--max-running-requests", type=int)
    parser.add_argument("--mem-fraction-static", type=float)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--api-key")
    parser.add_argument("--json-model-override-args")
    parser.add_argument("--config")
    known, _ = parser.parse_known_args(argv)
    if known.config:
        with open(known.config) as text:
            lines = [line.split(":", 1) for line in text if ":" in line]
        for name, value in lines:
            setattr(known, name.strip().replace("-", "_"), type_of(value.strip()))
    return known


def type_of(text):
    return int(text) if text.isdigit() else text


def rename(title):
    """Overwrites the command line where the kernel keeps it, as setproctitle does."""
    with open("/proc/self/stat") as stat:
        start, end = stat.read().rsplit(")", 1)[1].split()[45:47]
    length = int(end) - int(start)
    ctypes.memmove(int(start), title.encode()[: length - 1].ljust(length, b"\0"), length)


def main(argv=None):
    args = arguments(sys.argv[1:] if argv is None else argv)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            refused = args.api_key and self.path != "/health" and self.headers["authorization"] != f"Bearer {args.api_key}"
            answers = {"/health": {}, "/server_info": dict(vars(args), version="0.5.16"), "/v1/models": {"data": [{"id": "m"}]}}
            text = json.dumps(answers.get(self.path, {})).encode()
            self.send_response(401 if refused else 200 if self.path in answers else 404)
            self.send_header("content-length", str(0 if refused else len(text)))
            self.end_headers()
            if not refused:
                self.wfile.write(text)

    rank = subprocess.Popen(["sglang::scheduler_TP0"], executable=sys.executable, stdin=subprocess.PIPE)
    time.sleep(0.3)
    if os.environ.get("STANDIN_RENAME"):
        rename("sglang::http_server")

    def end(*_):
        rank.kill()
        rank.wait()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    print("The server is fired up and ready to roll!", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
