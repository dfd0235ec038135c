"""The helpers that the reduced tree asks for, answering as on gfx942 with ROCm 7.0, or gfx950 with 7.2."""

import os


def get_bool_env_var(name):
    return os.environ.get(name, "").lower() in ("1", "true")


def is_hip():
    return True


def is_cuda():
    return False


def _is_gfx950():
    return os.environ.get("PLAYED_ARCH") == "gfx950"


def is_gfx942_supported():
    return not _is_gfx950()


def is_gfx95_supported():
    return _is_gfx950()


def get_hip_version():
    return (7, 2, 26015) if _is_gfx950() else (7, 0, 51831)


def print_warning_once(text):
    print(text)
