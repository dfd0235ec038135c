from types import SimpleNamespace

_TP = None


def get_tp_group():
    assert _TP is not None, "tensor model parallel group is not initialized"
    return _TP


def start(rank, size):
    global _TP
    _TP = SimpleNamespace(rank_in_group=rank, world_size=size)
