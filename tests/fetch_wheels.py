#!/usr/bin/env python3
"""Fetch SGLang wheels by name and unpack the files that the tree tests read.

    fetch_wheels.py FOLDER [VERSION...]      download what is missing, then unpack
    fetch_wheels.py --all FOLDER             the same for every release in testdata/trees/dispatch.tsv
    fetch_wheels.py --unpack FOLDER          unpack the wheels that are there, download nothing

FOLDER keeps the wheels (so that a second run downloads nothing) and gets one folder a version.
"""

import pathlib
import re
import subprocess
import sys
import time
import zipfile

# One release per era at least, and both ends: what CI walks.
CI = [
    "0.5.5", "0.5.6", "0.5.9", "0.5.10.post1", "0.5.11", "0.5.13.post1", "0.5.14", "0.5.16",
    "0.5.22", "0.5.23",
]  # fmt: skip
WANTED = re.compile(
    r"sglang/(srt/layers/quantization/.*\.py|version\.py|_version\.py)|sglang-[^/]*\.dist-info/METADATA"
    r"|sglang/srt/layers/moe/(fused_moe_triton|moe_runner/triton_utils)/(fused_moe_triton_config\.py|configs/.*\.json)"
)


def every_release():
    table = pathlib.Path(__file__).parent.parent / "testdata/trees/dispatch.tsv"
    return [line.split("\t")[0] for line in table.read_text().splitlines()[1:]]


def download(folder, version):
    if list(folder.glob(f"sglang-{version}-*.whl")):
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--python-version", "3.11", "--only-binary", ":all:"]
    command += ["--platform", "manylinux_2_34_x86_64", "--dest", str(folder), f"sglang=={version}"]
    for attempt in range(1, 5):
        if subprocess.run(command).returncode == 0:
            return
        print(f"sglang {version}: attempt {attempt} failed", file=sys.stderr)
        time.sleep(5 * attempt)
    sys.exit(f"could not download sglang {version}")


def unpack(folder, wheel):
    target = folder / wheel.name.split("-")[1]
    done = target / ".unpacked"
    if done.exists():
        return
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if WANTED.fullmatch(name):
                archive.extract(name, target)
    done.touch()


def main(arguments):
    flags = [argument for argument in arguments if argument.startswith("--")]
    rest = [argument for argument in arguments if not argument.startswith("--")]
    if not rest or set(flags) - {"--all", "--unpack"}:
        sys.exit(__doc__)
    folder = pathlib.Path(rest[0])
    folder.mkdir(parents=True, exist_ok=True)
    if "--unpack" not in flags:
        for version in every_release() if "--all" in flags else rest[1:] or CI:
            download(folder, version)
    for wheel in sorted(folder.glob("sglang-*.whl")):
        unpack(folder, wheel)


main(sys.argv[1:])
