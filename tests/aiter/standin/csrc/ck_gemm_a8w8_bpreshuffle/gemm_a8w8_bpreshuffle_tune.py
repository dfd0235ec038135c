"""gemm_a8w8_bpreshuffle."""

from aiter.utility.base_tuner import GemmCommonTuner


def libtype_list(text):
    names = text.split(",")
    for name in names:
        if name not in ("all", "asm", "ck", "cktile", "flydsl"):
            raise ValueError(f"Invalid libtype: {name}")
    return names


class Tuner(GemmCommonTuner):
    KERNELS = (("ck", "a8w8_bpreshuffle_1x128x128_standin_{}", 4),)
    MODULES = ("module_gemm_a8w8_bpreshuffle_tune",)

    def _setup_specific_arguments(self):
        self.parser.add_argument("--libtype", type=libtype_list, default=["all"], help="libraries")


if __name__ == "__main__":
    key = ["cu_num", "M", "N", "K", "q_dtype_w"]
    resultList = ["libtype", "kernelId", "splitK", "us", "kernelName", "tflops", "bw", "errRatio"]
    tuner = Tuner("StandinBpreshuffleTuner", key=key, resultList=resultList)
    tuner.run(tuner.parse_args())
