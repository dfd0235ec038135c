"""gemm_a8w8."""

from aiter.utility.base_tuner import GemmCommonTuner


class Tuner(GemmCommonTuner):
    KERNELS = (("ck", "a8w8_rowwise_1x128x128_standin_{}", 4),)
    MODULES = ("module_gemm_a8w8_tune",)


if __name__ == "__main__":
    key = ["cu_num", "M", "N", "K", "q_dtype_w"]
    resultList = ["kernelId", "splitK", "us", "kernelName", "tflops", "bw", "errRatio"]
    tuner = Tuner("StandinA8W8Tuner", key=key, resultList=resultList)
    tuner.run(tuner.parse_args())
