"""The helpers that the reduced tree asks for, answering as on gfx942 with ROCm 7.0."""

import os


def get_bool_env_var(name):
    return os.environ.get(name, "").lower() in ("1", "true")


def is_hip():
    return True


def is_cuda():
    return False


def is_gfx942_supported():
    return True


def is_gfx95_supported():
    return False


def get_hip_version():
    return (7, 0, 51831)


def print_warning_once(text):
    print(text)
