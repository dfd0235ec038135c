"""The first module that aiter loads, in the parent and in every worker: puts the stand-ins in place."""

import standins

standins.install()


class _Enum:
    """As pybind makes them: from a number, hashable, with a name."""

    names = ()

    def __init__(self, value=0):
        self.value = int(value)

    @property
    def name(self):
        return self.names[self.value]

    def __int__(self):
        return self.value

    __index__ = __int__

    def __eq__(self, other):
        return int(self) == int(other) if isinstance(other, (int, _Enum)) else NotImplemented

    def __hash__(self):
        return hash(self.value)

    def __str__(self):
        return f"{type(self).__name__}.{self.name}"

    def __repr__(self):
        return f"<{self}: {self.value}>"


def _enum(label, *names):
    # aiter knows an enumeration by the beginning of its documentation.
    kind = type(label, (_Enum,), {"names": names, "__doc__": "Members:\n\n" + "\n".join(names)})
    for value, name in enumerate(names):
        setattr(kind, name, kind(value))
    return kind


ActivationType = _enum("ActivationType", "No", "Silu", "Gelu", "Swiglu", "Situv2")
QuantType = _enum(
    "QuantType",
    "No",
    "per_Tensor",
    "per_Token",
    "per_1x32",
    "per_1x128",
    "per_128x128",
    "per_256x128",
    "per_1024x128",
)
MlaVersion = _enum("MlaVersion", "V32", "V40")
MxScaleRoundMode = _enum("MxScaleRoundMode", "RoundUp", "RoundDown", "Even", "RoundNearest")
MxDtype = _enum("MxDtype", "FP4", "FP6", "FP8", "INT4")


class aiter_tensor_t:
    """Only named, never made."""
