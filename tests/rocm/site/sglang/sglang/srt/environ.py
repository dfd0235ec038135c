"""The environment variables that the reduced tree asks for."""


import os


class _Said:
    def __init__(self, name, value):
        self._name, self._value = name, value

    def get(self):
        said = os.environ.get(self._name)
        return self._value if said is None else type(self._value)(said)


class envs:
    """sglang.srt.environ.envs, reduced."""

    FP8_BACKEND = _Said("FP8_BACKEND", "auto")
    SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK = _Said("SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK", "")
