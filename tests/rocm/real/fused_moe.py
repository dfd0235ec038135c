"""Imported by released SGLang on a real torch, never called: the models that are served there have no experts."""


def fused_moe(*_, **__):
    raise NotImplementedError("the stand-in has no fused MoE")
