from dataclasses import dataclass

_args = None


@dataclass
class ServerArgs:
    model_path: str
    tp_size: int = 1


def set_global_server_args_for_scheduler(server_args):
    global _args
    _args = server_args
