"""The tuner: its command line, its batches, its files."""

import argparse
import csv
import os
import sys
import time

import torch

from aiter.utility.mp_tuner import fault_of, mp_tuner
from aiter.utility.times import us_of

INVALID_TIME = -1


def str2bool(text):
    return text.lower() in ("1", "true", "yes")


def log(text):
    print("[aiter] " + text, file=sys.stderr, flush=True)


class TunerCommon:
    ARG_DEFAULTS = {
        "tune_file": "",
        "untune_file": "",
        "errRatio": 0.05,
        "batch": 100,
        "profile_file": "",
        "timeout": None,
        "warmup": 5,
        "iters": 101,
    }
    KERNELS = (("ck", "a8w8_blockscale_1x128x128_standin_{}", 4), ("cktile", "a8w8_blockscale_cktile_standin_{}", 4))
    MODULES = ("module_gemm_a8w8_blockscale_tune",)
    HAS_LIBTYPE = True

    def __init__(self, name, key, resultList):
        self.name, self.keys, self.columns = name, key, key + resultList
        self.parser = argparse.ArgumentParser(description="a stand-in")
        self._setup_common_arguments()
        self._setup_specific_arguments()

    def _setup_specific_arguments(self):
        pass

    def _setup_common_arguments(self):
        defaults = self.ARG_DEFAULTS
        self.parser.add_argument("--verbose", "-v", action="store_true", help="more info")
        self.parser.add_argument("-i", "--untune_file", default=defaults["untune_file"], help="input")
        self.parser.add_argument("-o", "--tune_file", default=defaults["tune_file"], help="output")
        self.parser.add_argument("--mp", type=int, default=torch.cuda.device_count(), help="GPUs")
        self.parser.add_argument("-k", "--splitK", action="store_true", help="Use splitK kernels")
        self.parser.add_argument("--shape_grouped", action="store_true", default=False, help="group")
        self.parser.add_argument("--sort", type=str2bool, default=True, help="sort")
        self.parser.add_argument("--errRatio", type=float, default=defaults["errRatio"], help="tolerance")
        self.parser.add_argument("--batch", type=int, default=defaults["batch"], help="shapes in a batch")
        self.parser.add_argument("--all", action="store_true", help="retune")
        self.parser.add_argument("-o2", "--profile_file", default=defaults["profile_file"], help="all results")
        self.parser.add_argument("--warmup", type=int, default=defaults["warmup"], help="warmup")
        self.parser.add_argument("--iters", type=int, default=defaults["iters"], help="iters")
        self.parser.add_argument("--timeout", type=int, default=defaults["timeout"], help="limit of a task")

    def parse_args(self):
        if "--help" in sys.argv and os.environ.get("STANDIN_PYTHONLESS"):
            sys.exit("ImportError: no module named torch")
        return self.parser.parse_args()

    def build(self):
        """Compiles what is missing, as the first use of a module does."""
        seconds = os.environ.get("STANDIN_BUILD")
        folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "jit")
        for module in self.MODULES if seconds else ():
            path = os.path.join(folder, module + ".so")
            if not os.path.exists(path):
                log(f"start build [{module}] under {folder}/build/{module}")
                time.sleep(float(seconds))
                os.makedirs(folder, exist_ok=True)
                with open(path, "w"):
                    pass
                log(f"\033[32mfinish build [{module}], cost {seconds}s \033[0m")

    def candidates(self, args, shape):
        """(libtype, kernelId, splitK, kernelName, us) of everything tried for a shape."""
        library = getattr(args, "libtype", "all")
        found = []
        for libtype, name, count in self.KERNELS:
            if library in ("all", "both", libtype) or library == ["all"]:
                for kernel in range(count):
                    for split in range(3) if args.splitK else (0,):
                        us = us_of(libtype, kernel, shape, split)
                        found.append((libtype, kernel, split, name.format(kernel), us))
        return found

    def row(self, shape, candidate, us, error):
        libtype, kernel, split, name, _ = candidate
        properties = torch.cuda.get_device_properties(0)
        cells = {
            "gfx": properties.gcnArchName.split(":")[0],
            "cu_num": properties.multi_processor_count,
            **shape,
            "libtype": libtype,
            "kernelId": kernel,
            "splitK": split,
            "us": us,
            "kernelName": name,
            "tflops": 0 if us <= 0 else round(2 * shape["M"] * shape["N"] * shape["K"] / us / 1e6, 2),
            "bw": 1.0,
            "errRatio": error,
        }
        return [cells[column] for column in self.columns]

    def write(self, path, rows):
        """In place, as pandas does."""
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(rows)

    def run(self, args):
        with open(args.untune_file, newline="") as file:
            shapes = [
                {name: value if name == "q_dtype_w" else int(value) for name, value in row.items()}
                for row in csv.DictReader(file)
            ]
        print(shapes)
        if not os.path.exists(args.tune_file):
            print(f"Not exist tuned file: {args.tune_file}")
        size = min(args.batch, len(shapes))
        batches = (len(shapes) + size - 1) // size
        if args.verbose:
            log(f"total shapes to be tuned: {len(shapes)}, total_batches: {batches}, batch_size: {size}")
        gpus = torch.cuda.device_count()
        mp = gpus if args.mp < 1 or args.mp > gpus else args.mp
        tuned, profile, failed, done, status = [], [], [], 0, "Finished"
        started = time.time()
        try:
            for number in range(batches):
                batch = shapes[number * size : (number + 1) * size]
                self.build()
                work = [(shape, candidate) for shape in batch for candidate in self.candidates(args, shape)]
                tasks = [
                    (candidate[1], (shape["M"], shape["N"], shape["K"]), candidate[4]) for shape, candidate in work
                ]
                results = mp_tuner(
                    tasks,
                    mp,
                    args.shape_grouped or mp == 1,
                    args.timeout,
                    args.verbose,
                    lambda task: f"(304, {task[1][0]}, {task[1][1]}, {task[1][2]}), {task[0]}, 0, '', 'ck', False",
                )
                topk = 1
                for shape in batch:
                    mine = [
                        (candidate, us, error)
                        for (of, candidate), (us, error) in zip(work, results)
                        if of is shape
                    ]
                    if args.profile_file:
                        profile += [self.row(shape, *result) for result in mine]
                    good = sorted(
                        (result for result in mine if 0 <= result[1] < float("inf") and result[2] <= args.errRatio),
                        key=lambda result: result[1],
                    )
                    key = f"(304, {shape['M']}, {shape['N']}, {shape['K']})"
                    if not good:
                        log(f"error: no valid candidate found for {key}, please check the result or errRatio")
                    wanted = 1 if "effective" "_topk" in globals() else topk
                    chosen = good[:wanted]
                    if len(good) < topk:
                        topk = len(good)
                        print(f"choose {topk} kernels")
                    if chosen:
                        tuned.append(self.row(shape, *chosen[0]))
                    else:
                        log(f"No kernel can be used for {key}")
                        failed.append(shape)
                if args.profile_file:
                    self.write(args.profile_file, profile)
                if fault_of("table", (batch[0]["M"], batch[0]["N"], batch[0]["K"]), ("kill",)):
                    # Dies between its two files, in the middle of a line.
                    with open(args.tune_file, "w") as file:
                        file.write(",".join(self.columns) + "\n304,1")
                        file.flush()
                        os.kill(os.getpid(), 9)
                self.write(args.tune_file, tuned)
                done += 1
                log(
                    f"processed {done} batches of {batches}, Processing Status ====> "
                    f"{done / batches * 100:.1f}% tuned in {self.name}"
                )
            tuned.sort(key=lambda row: [row[self.columns.index(column)] for column in ("N", "M", "K")])
            self.write(args.tune_file, tuned)
        except KeyboardInterrupt:
            status = "Interrupted"
            log(f"interrupted by user, tuning stopped, {done} batches processed")
        log("============= Tuning results Summary: ==============")
        log(
            f"Tuning {status}. tune {len(tuned) + len(failed)} shapes, total tuning time is "
            f"{time.time() - started:.4f} seconds"
        )
        if failed or len(tuned) < len(shapes):
            log("\033[91m[Tuning not Finished]\033[0m some shapes are not tuned or all failed")
            sys.exit(1)


class GemmCommonTuner(TunerCommon):
    pass
