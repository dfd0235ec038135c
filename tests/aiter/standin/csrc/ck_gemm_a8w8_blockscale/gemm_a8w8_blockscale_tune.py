"""gemm_a8w8_blockscale, and with --preshuffle the operation on shuffled weights."""

from aiter.utility.base_tuner import GemmCommonTuner


class Tuner(GemmCommonTuner):
    MODULES = ("module_gemm_a8w8_blockscale_tune", "module_gemm_a8w8_blockscale_cktile_tune")

    def _setup_specific_arguments(self):
        self.parser.add_argument(
            "--libtype",
            type=str,
            default="all",
            choices=["ck", "cktile", "asm", "all", "both"],
            help="libraries",
        )
        self.parser.add_argument("--preshuffle", action="store_true", help="shuffled weights")
        self.parser.add_argument("--blockPerCu", nargs="+", type=int, default=list(range(1, 5)), help="CKTile only")


if __name__ == "__main__":
    key = ["cu_num", "M", "N", "K"]
    resultList = ["libtype", "kernelId", "splitK", "us", "kernelName", "tflops", "bw", "errRatio"]
    tuner = Tuner("StandinBlockScaleTuner", key, resultList)
    tuner.run(tuner.parse_args())
