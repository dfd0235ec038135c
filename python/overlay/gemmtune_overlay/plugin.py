"""Second door of the overlay: SGLang's plugin registry (0.5.11 and later).

The registry finds this through the `dist-info` folder beside the package. Where `sitecustomize` already placed
the hooks (the usual case: it comes first) this only says so. Where another `sitecustomize` was found before
ours, or the hooked modules were imported before it ran, the hooks are placed here.
"""


def load():
    """Entry point of the group `sglang.srt.plugins`."""
    from . import hooks

    hooks.install("plugin")
    hooks.catch_up("plugin")
