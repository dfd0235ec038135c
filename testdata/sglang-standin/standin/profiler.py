"""SGLang's profiler as its scheduler plays it: so many forward passes, then a trace of torch.profiler on disk.

STANDIN_PROFILER=absent answers 404, refuses answers 500, dies ends the server, hangs never writes a trace, torn writes half
of one, unnamed names no steps (SGLang up to 0.5.10).
"""

import gzip
import json
import os
import threading
import time

GEMMS = {
    "triton": "_w8a8_block_fp8_matmul",
    "aiter": "_gemm_a8w8_blockscale_kernel",
    "deepgemm": "void deep_gemm::sm90_fp8_gemm_1d2d_impl<(cute::UMMA::Major)0, 0u, 384u, 256u, 1u, 64u, 128u, 128u, (deep_gemm::GemmType)0>(float*, int*)",
    "cutlass": "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::tuple<int>, cutlass::float_e4m3_t>>(int)",
}
STREAM = 7


class Profiler:
    def __init__(self, backend):
        self.gemm = GEMMS[backend]
        self.mode = os.environ.get("STANDIN_PROFILER", "")
        self.lock = threading.Lock()
        self.passes = 0
        self.events = None
        self.now = 1e9
        self.launch = 0

    def start(self, order):
        """Status and body of the answer."""
        if self.mode == "dies":
            os._exit(1)
        if self.mode in ("absent", "refuses"):
            return (404, "Not Found") if self.mode == "absent" else (500, "Profiling is already in progress.")
        with self.lock:
            self.folder = order["output_dir"]
            self.target = self.passes + order["num_steps"] + 1
            self.id = str(time.time())
            self.events = []
        return 200, "Start profiling.\n"

    def stop(self):
        with self.lock:
            if self.events is None:
                return 500, "Profiling is not in progress. Call /start_profile first."
            self.export()
        return 200, "Stop profiling. This will take some time.\n"

    def step(self, label, graph, parts):
        """A forward pass of so many microseconds a part; those without a name are idle."""
        with self.lock:
            self.passes += 1
            if self.events is not None and self.target <= self.passes:
                self.export()
            if self.events is None:
                return
            self.launch += 1
            began = self.now
            if graph:
                self.event("cuda_runtime", "cudaGraphLaunch", began - 5, 4, {"correlation": self.launch})
            for name, duration in parts:
                if name is not None:
                    launch = self.launch if graph else self.launch * 1000 + len(self.events)
                    args = {"device": 0, "context": 1, "stream": STREAM, "correlation": launch, "grid": [1, 1, 1], "block": [128, 1, 1]}
                    self.event("kernel", name, self.now, duration, args)
                self.now += duration
            if self.mode != "unnamed":
                self.event("gpu_user_annotation", label, began, self.now - began, {"External id": self.launch})

    def event(self, category, name, start, duration, args):
        self.events.append(
            {"ph": "X", "cat": category, "name": name, "pid": 0, "tid": STREAM, "ts": start, "dur": duration, "args": args}
        )

    def export(self):
        events, self.events = self.events, None
        if self.mode == "hangs":
            return
        trace = {
            "schemaVersion": 1,
            "deviceProperties": [{"id": 0, "name": "NVIDIA Stand-in", "numSms": 132}],
            "traceEvents": [{"ph": "M", "name": "process_name", "pid": 0, "ts": 0, "args": {"name": "python"}}, *events],
        }
        text = gzip.compress(json.dumps(trace).encode())
        os.makedirs(self.folder, exist_ok=True)
        with open(os.path.join(self.folder, f"{self.id}-TP-0.trace.json.gz"), "wb") as file:
            file.write(text[: len(text) // 2] if self.mode == "torn" else text)
