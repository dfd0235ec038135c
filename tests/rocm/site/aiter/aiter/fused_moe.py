"""Imported by SGLang, not called on this path."""


def fused_moe(*_, **__):
    raise NotImplementedError("the stand-in has no fused MoE")
