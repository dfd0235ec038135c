"""The fused MoE: two stages timed apart and joined by their tile, against kernels that do both."""

import csv
import os
import sys
import time
from collections import defaultdict

import pandas as pd
import torch

from aiter.utility.base_tuner import TunerCommon, log
from aiter.utility.mp_tuner import fault_of, mp_tuner
from aiter.utility.times import us_of

AITER_ROOT_DIR = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
UNTUNED = (
    "token model_dim inter_dim expert topk act_type dtype q_dtype_a q_dtype_w q_type use_g1u1 doweight_stage1"
).split()


def text_of(key):
    """A key as Python prints it: numbers bare, enumerations and dtypes as themselves."""
    return "(" + ", ".join(key) + ")"


class FmoeTuner(TunerCommon):
    ARG_DEFAULTS = {**TunerCommon.ARG_DEFAULTS, "errRatio": 0.5, "batch": 100}

    def _setup_specific_arguments(self):
        self.parser.add_argument("--last", action="store_true", help="only the last shape")

    def tune(self, batch, args):
        blockMs = [32, 64, 128]
        gfx = torch.cuda.get_device_properties(0).gcnArchName.split(":")[0]
        tasks, infos = [], []
        for key in batch:
            cells = dict(zip(self.keys, key))
            print("\nStart tuning", key)
            if gfx != "gfx950" and cells["q_type"] == "QuantType.per_1x32":
                print(f"{cells['q_type']} is not supported on {gfx}")
                return []
            if cells["use_g1u1"] != "1":
                print("no moe solution(g1u0) can tune for ", key)
                continue
            size = tuple(int(cells[column]) for column in ("token", "model_dim", "inter_dim"))
            names = [(stage, tile) for tile in blockMs for stage in ("stage1", "stage2")] + [("asm_1stage", 32)]
            for stage, tile in names:
                us = us_of(stage, tile, size) * (3 if stage == "asm_1stage" else 1)
                tasks.append((f"{stage}_{tile}", size, us))
                infos.append((key, stage, f"standin_{stage}_{tile}", tile))
            print(f"stage1 asm tasks is {len(blockMs)}, tasks_ck is {len(blockMs)}, task_1stage is 1")
        if not tasks:
            print("no shape to tune or no solution found")
            return []
        gpus = torch.cuda.device_count()
        mp = gpus if args.mp < 1 or args.mp > gpus else args.mp

        def describe(task):
            return f"({304}, {task[1][0]}, {task[1][1]}, {task[1][2]}), 'stage1', '{task[0]}', 32"

        results = mp_tuner(tasks, mp, False, args.timeout, args.verbose, describe)
        return [(info, us, err) for info, (us, err) in zip(infos, results)]

    def post_process(self, results, args):
        grouped, bests, profile = defaultdict(list), [], []
        for (key, stage, name, tile), us, err in results:
            grouped[key].append((stage, name, tile, us, err))
            profile.append([stage, *key, tile, 0, us, name, f"{err:.1%}", 0, 0])
        limit = 0.5 if os.environ.get("STANDIN_DEAF") else args.errRatio
        for key, found in grouped.items():
            valid = [one for one in found if 0 < one[3] < float("inf") and one[4] <= limit]
            stages = {(stage, tile): (us, name, err) for stage, name, tile, us, err in valid}
            rows = []
            for (stage, tile), (us, name, err) in stages.items():
                second = stages.get(("stage2", tile))
                if stage == "stage1" and second:
                    rows.append([tile, 0, us, name, err, *second, round(us + second[0], 4), 0])
                if stage == "asm_1stage":
                    rows.append([tile, 0, us, name, err, 0, None, 0, us, 1])
            if not rows:
                print(
                    f"no valid candidate found for {text_of(key)}, please check the time or errRatio in all result "
                    "file running with --profile_file"
                )
                self.failed.append(key)
                continue
            best = min(rows, key=lambda row: row[8])
            best[4], best[7] = f"{best[4]:.1%}", f"{best[7]:.1%}"
            print(f"Tuning result for {text_of(key)} is {best[0], best[3], best[6], best[4], best[7], best[9]} {best[8]} us")
            bests.append([*key, *best, *[0] * (len(self.columns) - len(key) - 12), 1.0, 2.0])
        columns = ["stage", *self.keys, "block_m", "ksplit", "us", "kernelName", "err", "tflops", "bw"]
        profile_file = f"{AITER_ROOT_DIR}/aiter/configs/profile_fmoe.csv"
        pd.DataFrame(profile, columns=columns).to_csv(profile_file, index=False)
        if args.profile_file:
            pd.DataFrame(profile, columns=columns).to_csv(args.profile_file, index=False)
        return bests

    def run(self, args):
        properties = torch.cuda.get_device_properties(0)
        card = {"gfx": properties.gcnArchName.split(":")[0], "cu_num": str(properties.multi_processor_count)}
        self.failed, tuned, done, status = [], [], 0, "Finished"
        with open(args.untune_file, newline="") as file:
            reader = csv.DictReader(file)
            assert reader.fieldnames == UNTUNED, reader.fieldnames
            keys = [tuple({**card, **row}[column] for column in self.keys) for row in reader]
        if not os.path.exists(args.tune_file):
            print(f"Not exist tuned file: {args.tune_file}")
        size = min(args.batch, len(keys))
        total = (len(keys) + size - 1) // size
        started = time.time()
        try:
            for at in range(0, len(keys), size):
                batch = keys[at : at + size]
                results = self.tune(batch, args)
                if not results:
                    log(f"tune result is none or all shape is tuned in {args.tune_file}!")
                    continue
                tuned += self.post_process(results, args)
                if fault_of("table", batch[0][self.keys.index("token") :][:3], ("kill",)):
                    # Dies in the middle of a line.
                    with open(args.tune_file, "w") as file:
                        file.write(",".join(self.columns) + "\n304,1")
                        file.flush()
                        os.kill(os.getpid(), 9)
                self.write(args.tune_file, tuned)
                done += 1
                log(
                    f"processed {done} batches of {total}, Processing Status ====> "
                    f"{round(done / total, 2) * 100:.1f}% tuned in {self.name}"
                )
        except KeyboardInterrupt:
            status = "Interrupted"
            log(f"interrupted by user, tuning stopped, {done} batches processed")
        log("============= Tuning results Summary: ==============")
        log(
            f"Tuning {status}. tune {len(tuned) + len(self.failed)} shapes, total tuning time is "
            f"{time.time() - started:.4f} seconds"
        )
        if len(tuned) < len(keys):
            log("\033[91m[Tuning not Finished]\033[0m some shapes are not tuned or all failed")
            sys.exit(1)


if __name__ == "__main__":
    key = [
        "cu_num",
        "token",
        "model_dim",
        "inter_dim",
        "expert",
        "topk",
        "act_type",
        "dtype",
        "q_dtype_a",
        "q_dtype_w",
        "q_type",
        "use_g1u1",
        "doweight_stage1",
    ]
    resultList = [
        "block_m",
        "ksplit",
        "us1",
        "kernelName1",
        "err1",
        "us2",
        "kernelName2",
        "err2",
        "us",
        "run_1stage",
        "tflops",
        "bw",
    ]
    tuner = FmoeTuner("fmoeTuner", key, resultList)
    tuner.run(tuner.parse_args())
