"""Imported by SGLang, not called on gfx942."""


def shuffle_weight(*_, **__):
    raise NotImplementedError("the stand-in shuffles no weight")
