"""A small server around SGLang's block-FP8 linear, for tests: an OpenAI-style completion endpoint, greedy, batched.

Its model is a few linears in a row; the next token is where the last one's output is largest. The linears are those of
the tree on the path: a reduced one on the stand-in torch, or a released one on a real torch. Requests in flight are decoded
together, so M follows the load.

Arguments: --port P --weights N,K;N,K (each K is the N before it, the first K is the last N). A weight N,K,channel has one
scale per output channel instead of one per block, and goes through the linear that compressed-tensors layers use; N,K,plain is bf16 and
goes through no FP8 linear. With
--experts E,N,topk a fused MoE of aiter's stands behind the linears, called as SGLang calls it; with --experts E,N,topk,ALL its ids are of
ALL experts, and the mask says that this rank holds the first E.
"""

import argparse
import json
import logging
import os
import queue
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

logging.basicConfig(
    level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr
)
LOGGER = logging.getLogger("server")
VOCABULARY = 200


class Model:
    """Linears in a row, and an embedding."""

    def __init__(self, weights, experts):
        import torch

        self.torch = torch
        from sglang.srt.distributed import parallel_state

        one_rank(parallel_state)
        from sglang.srt.layers.quantization import fp8, fp8_utils

        del fp8
        import aiter

        self.utils = fp8_utils
        self.linear = fp8_utils.dispatch_w8a8_block_fp8_linear()
        if any(scales != "plain" for _, _, scales in weights):
            print_identity(self.linear)
        self.width = weights[0][1]
        self.layers = [self._layer(aiter.dtypes.fp8, *weight, seed) for seed, weight in enumerate(weights)]
        if experts:
            self.layers.append(Experts(torch, aiter, self.width, *experts))
        torch.manual_seed(99)
        self.embedding = torch.randn(VOCABULARY, self.width)

    def _layer(self, kind, n, k, scales, seed):
        """A linear, ready to be called with an activation."""
        if scales == "plain":
            self.torch.manual_seed(seed)
            columns = self.torch.randn(n, k).to(self.torch.bfloat16).t()
            return lambda x: x.float() @ columns
        if scales == "channel":
            weight, scale = self._channel_weight(kind, n, k, seed)
            same = {
                "input_scale": None,
                "bias": None,
                "use_per_token_if_dynamic": True,
                "compressed_tensor_quant": True,
            }
            return lambda x: self.utils.apply_fp8_ptpc_linear(input=x, weight=weight, weight_scale=scale, **same)
        weight, scale = self._weight(kind, n, k, seed)
        same = {"block_size": [128, 128], "input_scale": None, "bias": None}
        return lambda x: self.linear(input=x, weight=weight, weight_scale=scale, **same)

    def _channel_weight(self, kind, n, k, seed):
        """What `CompressedTensorsW8A8Fp8.process_weights_after_loading` leaves of a weight with one scale per channel."""
        from aiter.ops.shuffle import shuffle_weight

        torch = self.torch
        torch.manual_seed(seed)
        w = torch.randn(n, k)
        scale = w.abs().amax(dim=(1,)).view(n, 1) / torch.finfo(kind).max
        return shuffle_weight((w / scale).to(kind), (16, 16)), scale

    def _weight(self, kind, n, k, seed):
        torch = self.torch
        torch.manual_seed(seed)
        rows, groups = -(-n // 128), k // 128
        w = torch.randn(rows * 128, k).view(rows, 128, groups, 128)
        scale = w.abs().amax(dim=(1, 3)) / torch.finfo(kind).max
        w = (w / scale.view(rows, 1, groups, 1)).view(rows * 128, k)[:n].contiguous().to(kind)
        # What `process_weights_after_loading` does (0.5.11 to 0.5.23).
        if getattr(self.utils, "_use_aiter_bpreshuffle_gfx95", False):
            if not self.utils.use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k):
                from aiter.ops.shuffle import shuffle_weight

                w = shuffle_weight(w, (16, 16))
        return w, scale

    def forward(self, tokens):
        """The next token after each of `tokens`."""
        torch = self.torch
        x = self.embedding[[token % VOCABULARY for token in tokens]].to(torch.bfloat16)
        for layer in self.layers:
            x = layer(x)
            x = (x * (1.0 / 64)).to(torch.bfloat16)
        return [most_at(x[[row]].view(-1)) % VOCABULARY for row in range(len(tokens))]


class Experts:
    """A fused MoE with its router, the weights as `Fp8MoEMethod` leaves them with aiter (0.5.6 to 0.5.12.post1: the mark is lost)."""

    def __init__(self, torch, aiter, hidden, experts, inter, topk, of_all=None):
        from aiter.fused_moe import fused_moe
        from aiter.ops.shuffle import shuffle_weight

        self.torch, self.aiter, self.fused_moe, self.topk = torch, aiter, fused_moe, topk
        torch.manual_seed(77)
        self.router = torch.randn(hidden, of_all or experts)
        self.weights, self.scales = [], []
        for n, k in ((2 * inter, hidden), (hidden, inter)):
            made = [self._weight(n, k) for _ in range(experts)]
            stacked = shuffle_weight(torch.stack([q for q, _ in made]), (16, 16))
            stacked.is_shuffled = False
            self.weights.append(stacked)
            self.scales.append(torch.stack([scale for _, scale in made]))
        held = [[1.0] * experts + [0.0] * ((of_all or experts) - experts)]
        self.mask = torch.tensor(held).view(of_all).to(torch.int32) if of_all else None

    def _weight(self, n, k):
        torch, kind = self.torch, self.aiter.dtypes.fp8
        w = torch.randn(n, k).view(n // 128, 128, k // 128, 128)
        scale = w.abs().amax(dim=(1, 3)) / torch.finfo(kind).max
        q = (w / scale.view(n // 128, 1, k // 128, 1)).view(n, k).to(kind)
        return q, scale

    def __call__(self, x):
        ids = (x.float() @ self.router).topk(self.topk, dim=1).indices.to(self.torch.int32)
        weights = self.torch.tensor([[1.0 / self.topk] * self.topk] * x.shape[0])
        return self.fused_moe(
            x, self.weights[0], self.weights[1], weights, ids, w1_scale=self.scales[0], w2_scale=self.scales[1],
            quant_type=self.aiter.QuantType.per_128x128, activation=self.aiter.ActivationType.Silu,
            expert_mask=self.mask,
        )  # fmt: skip


def most_at(values):
    if hasattr(values, "tolist"):
        values = values.tolist()
    else:
        values = values.values
    return max(range(len(values)), key=values.__getitem__)


def one_rank(parallel_state):
    """Tensor parallelism of one rank, without a process group."""
    if not hasattr(parallel_state, "_TP"):
        return
    group = types.SimpleNamespace(world_size=1, rank_in_group=0, rank=0)
    parallel_state._TP = group
    try:
        parallel_state.get_tp_group()
    except RuntimeError:  # 0.5.22 and later keep the group in a context of their own
        OPEN.append(parallel_state.get_parallel().override(tp_group=group))
        OPEN[-1].__enter__()


#: Contexts that last as long as the process.
OPEN = []


def print_identity(function):
    """What a patched `Fp8LinearMethod` says; the overlay says the same of its own."""
    function = getattr(function, "func", function)
    LOGGER.info("linears are served by %s (%s)", function.__qualname__, function.__module__)


class Request:
    """One completion under way."""

    def __init__(self, prompt, wanted):
        self.prompt, self.wanted = prompt, wanted
        self.token = None
        self.pieces = queue.Queue()


class Scheduler(threading.Thread):
    """Prefills what arrives, then decodes everything in flight together."""

    def __init__(self, model):
        super().__init__(daemon=True)
        self.model, self.waiting = model, queue.Queue()

    def run(self):
        running = []
        while True:
            while not running or not self.waiting.empty():
                request = self.waiting.get()
                request.token = self.model.forward(request.prompt)[-1]
                self.tell(request)
                LOGGER.info("Prefill batch, #new-seq: 1, #new-token: %d", len(request.prompt))
                running.append(request)
            running = [request for request in running if request.wanted > 0]
            if running:
                for request, token in zip(running, self.model.forward([request.token for request in running])):
                    request.token = token
                    self.tell(request)
                LOGGER.info("Decode batch, #running-req: %d, #token: 1", len(running))

    def tell(self, request):
        request.wanted -= 1
        request.pieces.put((f" t{request.token}", request.wanted == 0))


class Handler(BaseHTTPRequestHandler):
    """The endpoints that a benchmark asks."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/health":
            return self.answer({})
        if self.path == "/v1/models":
            return self.answer({"data": [{"id": "stand-in"}]})
        if self.path in ("/server_info", "/get_server_info"):
            return self.answer({"model_path": "stand-in", "tp_size": 1, "port": self.server.server_port})
        self.send_error(404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        if self.path != "/v1/completions":
            return self.send_error(404)
        request = Request(body["prompt"], body["max_tokens"])
        SCHEDULER.waiting.put(request)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        last = False
        while not last:
            text, last = request.pieces.get()
            self.event({"choices": [{"index": 0, "text": text, "finish_reason": "length" if last else None}]})
        usage = {"prompt_tokens": len(request.prompt), "completion_tokens": body["max_tokens"]}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def event(self, document):
        self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())
        self.wfile.flush()

    def answer(self, document):
        text = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--experts", default="")
    arguments = parser.parse_args()
    if os.environ.get("REALTREES_ARCH"):
        import rocm_look  # noqa: F401  a real torch is made to answer as on ROCm
    started = time.perf_counter()
    weights = [(int(n), int(k), *scales) for n, k, *scales in (one.split(",") for one in arguments.weights.split(";"))]
    weights = [weight if len(weight) == 3 else (*weight, "block") for weight in weights]
    experts = [int(size) for size in arguments.experts.split(",") if size]
    SCHEDULER = Scheduler(Model(weights, experts))
    SCHEDULER.start()
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    LOGGER.info("ready after %.1f s", time.perf_counter() - started)
    LOGGER.info("The server is fired up and ready to roll!")
    server.serve_forever()
