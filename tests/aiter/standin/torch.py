"""What the tuner asks of torch: how many GPUs there are, and what they are."""

import os

__version__ = "0.standin"


class version:
    hip = "0.standin"


class _Properties:
    multi_processor_count = 304
    gcnArchName = "gfx942:sramecc+:xnack-"
    name = "stand-in GPU"


class cuda:
    @staticmethod
    def device_count():
        return int(os.environ.get("STANDIN_GPUS", "2"))

    @staticmethod
    def current_device():
        return 0

    @staticmethod
    def get_device_properties(_index):
        return _Properties()
