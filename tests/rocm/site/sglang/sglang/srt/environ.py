"""The environment variables that the reduced tree asks for."""


class _Said:
    def __init__(self, value):
        self._value = value

    def get(self):
        return self._value


class envs:
    """sglang.srt.environ.envs, reduced."""

    FP8_BACKEND = _Said("auto")
