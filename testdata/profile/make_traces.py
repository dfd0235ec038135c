"""Writes the traces of this folder: small ones, by hand after the form of torch.profiler (see README.md).

    python3 make_traces.py
"""

import json
import pathlib

MAIN, SIDE = 7, 20
DEEP_GEMM = (
    "void deep_gemm::sm90_fp8_gemm_1d2d_impl<(cute::UMMA::Major)0, 0u, 1536u, 2048u, 1u, 64u, 128u, 128u, 128u, 128u, 0u, 5u, 0u, 2u, "
    "true, 132u, (deep_gemm::GemmType)0, deep_gemm::epilogue::transform::EpilogueIdentity>(float*, int*, unsigned int, unsigned int)"
)
FLASH = "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<2, cutlass::bfloat16_t> > > >"
NCCL = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
QUANT = "void per_token_group_quant_8bit_kernel<c10::BFloat16, __nv_fp8_e4m3, true, false, float>(void const*, void*, float*)"
TOPK = "void topkGatingSoftmax<float, 4, 128, 4, 16, __nv_bfloat16>(__nv_bfloat16 const*, bool const*, float*)"
NORM = "void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16*, __nv_bfloat16*, __nv_bfloat16*)"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16> >(int)"


class Trace:
    def __init__(self, device):
        self.device = device
        self.correlation = 0
        self.events = [
            {"ph": "M", "name": "process_name", "ts": 0, "pid": 4711, "tid": 0, "args": {"name": "python"}},
            {"ph": "X", "cat": "cpu_op", "name": "aten::empty", "pid": 4711, "tid": 4711, "ts": 998.5, "dur": 1, "args": {"External id": 1}},
        ]

    def kernel(self, name, start, end, stream=MAIN, correlation=None):
        if correlation is None:
            self.correlation += 1
            correlation = self.correlation
        args = {
            "External id": correlation, "queued": 0, "device": 0, "context": 1, "stream": stream, "correlation": correlation,
            "registers per thread": 32, "shared memory": 0, "blocks per SM": 0.06, "warps per SM": 0.24, "grid": [8, 1, 1],
            "block": [128, 1, 1], "est. achieved occupancy %": 0,
        }  # fmt: skip
        self.add("kernel", name, 0, stream, start, end, args)

    def span(self, name, record, start, end, stream=MAIN):
        self.add("gpu_user_annotation", name, 0, stream, start, end, {"External id": record})

    def launch(self, correlation, at):
        self.add("cuda_runtime", "cudaGraphLaunch", 4711, 4711, at, at + 3, {"External id": 1, "cbid": 311, "correlation": correlation})

    def add(self, category, name, pid, tid, start, end, args):
        event = {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid, "ts": start, "dur": end - start, "args": args}
        self.events.append(event)

    def write(self, name):
        events = ",\n".join(json.dumps(event) for event in self.events)
        properties = json.dumps([{"id": 0, "name": self.device, "totalGlobalMem": 150108766208, "computeMajor": 9, "numSms": 132}])
        text = f'{{"schemaVersion": 1, "deviceProperties": {properties}, "traceEvents": [\n{events}\n], "traceName": "{name}"}}\n'
        (pathlib.Path(__file__).parent / name).write_text(text)


def steps_of_a_rank(rank, attention_ends):
    """Two prefill steps of 500 µs, then decode steps of 100 µs, of which one lasts 250."""
    trace = Trace("NVIDIA H200")
    trace.kernel(ADD, 900, 950)  # of the step before, whose beginning was not recorded
    for start in (1000, 1500):
        trace.span("step[EXTEND bs=2 toks=512]", start, start, start + 350)
        trace.kernel("fused_moe_kernel", start, start + 200)
        trace.kernel(DEEP_GEMM, start + 200, start + 300)
        trace.kernel(ADD, start + 300, start + 350)
    for start in (2000, 2100, 2200, 2450, 2550, 2650):
        trace.span("step[DECODE bs=8]", start, start, start + 90)
        trace.span("step[DECODE bs=8]", start, start + 20, start + 30, SIDE)
        trace.kernel(DEEP_GEMM, start, start + 10)
        trace.kernel(QUANT, start + 10, start + 15)
        trace.kernel(FLASH, start + 15, start + attention_ends)
        trace.kernel(NCCL, start + (20 if rank == 0 else 28), start + 30, SIDE)
        trace.kernel(TOPK, start + 30, start + 35)
        trace.kernel("fused_moe_kernel", start + 35, start + 65)
        trace.kernel("fused_moe_kernel", start + 65, start + 85)
        trace.kernel("mystery_kernel", start + 85, start + 87)
        trace.kernel(NORM, start + 87, start + 90)
    trace.write(f"1762000000.1-TP-{rank}.trace.json")


def graphs_only():
    """No spans, as SGLang up to 0.5.10: four decode graphs of 60 µs each, a prefill between the second and the third."""
    trace = Trace("NVIDIA H100 80GB HBM3")
    for graph, start in ((11, 1000), (12, 1100), (13, 1600), (14, 1700)):
        trace.launch(graph, start - 20)
        trace.kernel("_w8a8_block_fp8_matmul", start, start + 40, correlation=graph)
        trace.kernel("_fwd_grouped_kernel_stage1", start + 40, start + 60, correlation=graph)
        trace.kernel("void at::native::reduce_kernel<512, 1>(int)", start + 60, start + 70)
    for start in (1200, 1300, 1400):
        trace.kernel("_w8a8_block_fp8_matmul_unrolledx4", start, start + 90)
    trace.write("graphs.trace.json")


def rocm():
    """A stage of its own, as `profile_by_stage` writes it, with kernels of ROCm."""
    trace = Trace("AMD Instinct MI300X")
    start = 5000
    for name, duration in (
        ("_ZN5aiter47fmoe_bf16_blockscaleFp8_g1u1_vs_pf2_silu_1tg_32x256E", 60),
        ("void ck_tile::kentry<1, ck_tile::MoeSortingMultiPhaseKernel_P0_v1<ck_tile::MoeSortingProblemMp<int, float, 1> > >(int)", 4),
        ("void ck::kernel_gemm_xdl_cshuffle_v3_multi_d<ck::GridwiseGemmMultiD_blockscale_xdl_cshuffle_v3<ck::f8_t> >(int)", 20),
        ("void aiter::dynamic_per_group_scaled_quant_kernel<__hip_bfloat16, _Float8_e4m3fnuz, 64>(int)", 3),
        ("void paged_attention_ll4mi_QKV_mfma16_kernel<__hip_bfloat16>(int)", 10),
        ("Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT16x16x512_MI16x16x1", 3),
    ):
        trace.kernel(name, start, start + duration)
        start += duration
    trace.write("1762000000.2-TP-0-DECODE.trace.json")


steps_of_a_rank(0, 25)
steps_of_a_rank(1, 28)
graphs_only()
rocm()
