"""Speaks SGLang's HTTP and log lines and serves a model of four weights and two layers from `cost`.

    python -m standin.server --port 30000 [--backend triton|deepgemm|cutlass] [--hidden-size N] [--chunked-prefill-size N] [--experts E]
        [--tp-size N] [--ep-size N]

With experts its MLP is a fused MoE of E experts, 128 columns between its GEMMs and two experts a token, on SGLang's Triton kernel.

Decoding replays graphs that were captured before it listens, prefill runs at once. Answers are a function of the
prompt, whoever computes them.
"""

import argparse
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from sglang.srt.distributed import parallel_state
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.layers.quantization import fp8
from standin import cost
from standin.profiler import Profiler

LAYERS = 2
GRAPHS = [1, 2, 4, 8]

logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="[%(asctime)s] %(message)s")
log = logging.getLogger("sglang")


class Engine(threading.Thread):
    def __init__(self, backend, chunk, hidden, experts, local_experts):
        super().__init__(daemon=True)
        self.hidden, self.experts, self.local_experts = hidden, experts, local_experts
        # QKV, output, gate and up, down.
        self.weights = [(hidden * 3 // 2, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 2 * hidden)]
        if experts:
            self.weights = self.weights[:2]
        self.linear = fp8.dispatch_w8a8_block_fp8_linear(backend)
        self.chunk = chunk
        self.profiler = Profiler(backend)
        self.share_of_experts = {}  # of a pass over M rows
        self.waiting = queue.Queue()
        self.graphs = {}
        log.info("Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, bs=%s, avail mem=1 GB", GRAPHS)
        for size in GRAPHS:
            graph = self.graphs[size] = torch.cuda.CUDAGraph()
            self.forward(size)  # once before it is captured, as SGLang does
            graph.capture_begin()
            self.forward(size)
            graph.capture_end()
        log.info("max_total_num_tokens=1000, chunked_prefill_size=%d, max_prefill_tokens=512, max_running_requests=8", chunk)

    def forward(self, m):
        """Microseconds of one pass over `m` rows."""
        before = cost.device_time()
        experts = 0
        for _ in range(LAYERS):
            for n, k in self.weights:
                self.linear(
                    input=torch.Tensor(m, k, dtype=torch.bfloat16),
                    weight=torch.Tensor(n, k),
                    block_size=[128, 128],
                    weight_scale=torch.Tensor(n // 128, k // 128, dtype=torch.float32),
                )
            if self.experts:
                began = cost.device_time()
                self.mlp(m)
                experts += cost.device_time() - began
        took = cost.device_time() - before
        self.share_of_experts[m] = experts / took if took else 0.0
        return took

    def mlp(self, m, n=128, topk=2):
        fused_moe.fused_experts(
            torch.Tensor(m, self.hidden, dtype=torch.bfloat16),
            torch.Tensor(self.local_experts, 2 * n, self.hidden),
            torch.Tensor(self.local_experts, self.hidden, n),
            StandardTopKOutput(torch.Tensor(m, topk), torch.Tensor(m, topk), None),
            MoeRunnerConfig(num_experts=self.experts, num_local_experts=self.local_experts, inplace=False),
            use_fp8_w8a8=True,
            block_shape=[128, 128],
        )

    def run(self):
        running = []
        while True:
            while not running or not self.waiting.empty():
                request = self.waiting.get()
                tokens = len(request["prompt"])
                log.info("Prefill batch, #new-seq: 1, #new-token: %d, #cached-token: 0, cuda graph: False", tokens)
                took = self.forward(tokens)
                time.sleep(took / 1e6)
                self.profile(f"step[EXTEND bs=1 toks={tokens}]", False, took, tokens)
                self.say(request)
                running.append(request)
                running = [request for request in running if request["left"] > 0]
            size = min(size for size in self.graphs if size >= min(len(running), max(self.graphs)))
            self.graphs[size].replay()
            took = self.graphs[size].microseconds
            time.sleep(took * 5 / 1e6)
            self.profile(f"step[DECODE bs={len(running)}]", True, took, size)
            for request in running:
                self.say(request)
            running = [request for request in running if request["left"] > 0]

    def profile(self, label, graph, took, m):
        """A pass whose GEMMs took so long: a decode step lasts five times that, and a fifth of it nothing runs."""
        rest = [("_fwd_grouped_kernel_stage1", 2 * took), ("standin_sampler", took), (None, took)] if graph else []
        experts = took * self.share_of_experts[m]
        gemms = [("fused_moe_kernel", experts), (self.profiler.gemm, took - experts)]
        self.profiler.step(label, graph, [*(gemm for gemm in gemms if gemm[1] > 0), *rest])

    def say(self, request):
        request["said"] += 1
        request["left"] -= 1
        request["tokens"].put(f" w{(sum(request['prompt']) * 31 + request['said'] * 7) % 1000}")
        if request["left"] == 0:
            request["tokens"].put(None)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        answers = {
            "/health": {},
            "/v1/models": {"data": [{"id": "stand-in"}]},
            "/server_info": {"version": "0.5.16", "model_path": "/stand-in", "chunked_prefill_size": self.server.engine.chunk,
                             **self.server.arguments},
        }
        text = json.dumps(answers.get(self.path, {})).encode()
        self.send_response(200 if self.path in answers else 404)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        order = json.loads(body) if body else {}
        profiler = self.server.engine.profiler
        if self.path in ("/start_profile", "/stop_profile"):
            status, text = profiler.start(order) if self.path == "/start_profile" else profiler.stop()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())
            return
        request = {"prompt": order["prompt"], "left": order["max_tokens"], "said": 0, "tokens": queue.Queue()}
        self.server.engine.waiting.put(request)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        while (text := request["tokens"].get()) is not None:
            self.event({"choices": [{"text": text, "finish_reason": None}]})
        self.event({"choices": [{"text": "", "finish_reason": "length"}]})
        usage = {"prompt_tokens": len(order["prompt"]), "completion_tokens": request["said"]}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, document):
        self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")
        self.wfile.flush()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--chunked-prefill-size", type=int, default=256)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--experts", type=int, default=0)
    parser.add_argument("--tp-size", type=int, default=1)
    parser.add_argument("--ep-size", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0)
    arguments = parser.parse_args()
    parallel_state.start(arguments.rank, arguments.tp_size)
    engine = Engine(arguments.backend, arguments.chunked_prefill_size, arguments.hidden_size, arguments.experts,
                    arguments.experts // arguments.ep_size)
    if arguments.rank:
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.2)
        return
    for rank in range(1, arguments.tp_size):
        # STANDIN_STRAY: a variable that rank 1 does not inherit, as on a host that was given another environment.
        env = {name: value for name, value in os.environ.items() if rank != 1 or name != os.environ.get("STANDIN_STRAY")}
        subprocess.Popen([sys.executable, "-m", "standin.server", *sys.argv[1:], "--rank", str(rank)], env=env)
    engine.start()
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    server.engine = engine
    server.arguments = {"tp_size": arguments.tp_size, "ep_size": arguments.ep_size}
    log.info("The server is fired up and ready to roll!")
    # An interpreter that is told to end flushes what it recorded, as SGLang does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever()


if __name__ == "__main__":
    main()
