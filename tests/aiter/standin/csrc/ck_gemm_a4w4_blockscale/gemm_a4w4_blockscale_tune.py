"""gemm_a4w4."""

from aiter.utility.base_tuner import GemmCommonTuner


class Tuner(GemmCommonTuner):
    KERNELS = (("ck", "a4w4_blockscale_1x128x128_standin_{}", 4),)
    MODULES = ("module_gemm_a4w4_blockscale_tune",)


if __name__ == "__main__":
    key = ["cu_num", "M", "N", "K"]
    resultList = ["kernelId", "splitK", "us", "kernelName", "tflops", "bw", "errRatio"]
    tuner = Tuner("StandinA4W4Tuner", key=key, resultList=resultList)
    tuner.run(tuner.parse_args())
