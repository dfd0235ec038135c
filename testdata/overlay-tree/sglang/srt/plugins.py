from importlib.metadata import entry_points


def load_plugins():
    for entry in entry_points(group="sglang.srt.plugins"):
        entry.load()()
