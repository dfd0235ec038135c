#!/usr/bin/env python3
"""Lets PyPI's CUDA build of torch be imported without NVIDIA's libraries, which are far larger than torch itself.

    cuda_standins.py SITE_PACKAGES

torch links to them, so the loader wants them at import even where there is no GPU. For each library that torch's own
ask for and that nobody provides, one is compiled under that name beside them. It has the symbols that torch imports
from outside, in the versions asked for, and each answers 100: CUDA's "no device is detected". For tests on a CPU only.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

#: Always there: the C and C++ runtimes, and what torch brings.
PRESENT = re.compile(
    r"(ld-linux-x86-64|libc|libdl|libm|libpthread|librt|libgcc_s|libstdc\+\+|libgomp|libtorch\w*|libc10\w*|libshm)\.so"
)
#: Belongs to NVIDIA's driver: torch opens it only where there is a GPU.
DRIVER = "libcuda.so.1"
#: Names of the C interfaces of CUDA's libraries.
OURS = re.compile(r"_{0,2}(cu|nv|nccl)\w+")


def lines(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def asked_for(names):
    """Libraries that `names` link to, and the symbol versions they want of each."""
    versions, of = {}, None
    for line in lines("objdump", "-p", *names):
        words = line.split()
        if words[:1] == ["NEEDED"]:
            versions.setdefault(words[1], set())
        elif words[:2] == ["required", "from"]:
            of = words[2].rstrip(":")
        elif of and len(words) == 4 and words[0].startswith("0x"):
            versions.setdefault(of, set()).add(words[3])
        else:
            of = None
    return versions


def outside_symbols(names):
    """Symbols of CUDA's that `names` import, by version; those without one under None."""
    symbols = {}
    for line in lines("nm", "-D", "--undefined-only", *names):
        if line.startswith(" "):
            name, _, version = line.split()[-1].partition("@")
            if OURS.fullmatch(name):
                symbols.setdefault(version.lstrip("@") or None, set()).add(name)
    return symbols


def build(target, versions, symbols):
    plain = symbols.get(None, set())
    script = ""
    for version in sorted(versions):
        names = symbols.get(version, set())
        plain = plain - names
        script += f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};\n"
    functions = plain.union(*(symbols.get(version, set()) for version in versions))
    with tempfile.NamedTemporaryFile("w", suffix=".map") as file:
        file.write(script)
        file.flush()
        command = [
            "cc",
            "-shared",
            "-fPIC",
            "-O1",
            "-w",
            f"-Wl,-soname,{target.name}",
            "-x",
            "c",
            "-",
            "-o",
            str(target),
        ]
        source = "".join(f"int {name}(void) {{ return 100; }}\n" for name in sorted(functions))
        subprocess.run(
            [*command, f"-Wl,--version-script={file.name}"] if script else command, input=source, text=True, check=True
        )


def main(site_packages):
    folder = pathlib.Path(site_packages) / "torch" / "lib"
    names = [str(library) for library in sorted(folder.glob("*.so*"))]
    if not names:
        sys.exit(f"no libraries of torch in {folder}")
    symbols = outside_symbols(names)
    there = {pathlib.Path(name).name for name in names} | {DRIVER}
    missing = {
        name: versions for name, versions in asked_for(names).items() if name not in there and not PRESENT.match(name)
    }
    for name, versions in sorted(missing.items()):
        build(folder / name, versions, symbols)
    print(f"{len(missing)} stand-ins beside torch: {' '.join(sorted(missing))}")


main(sys.argv[1])
