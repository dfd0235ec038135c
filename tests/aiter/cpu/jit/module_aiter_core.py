"""The first module that aiter loads, in the parent and in every worker: puts the stand-ins in place. Enumerations print, compare
and hash as pybind11's do, because a look-up prints them and uses them as parts of a key."""

import ast
import os
import re

import standins
import standins_abi
from standins_abi import TREE, aiter_tensor_t  # noqa: F401

standins.install()
standins_abi.install("standins_moe")


class _Enum:
    def __init__(self, value=0):
        self.value = int(value)

    @property
    def name(self):
        return next(name for name, value in self.members.items() if value == self.value)

    def __int__(self):
        return self.value

    __index__ = __int__

    # Only members of the same enumeration are equal: neither text nor number is.
    def __eq__(self, other):
        return type(self) is type(other) and self.value == other.value

    def __hash__(self):
        return hash(self.value)

    def __str__(self):
        return f"{type(self).__name__}.{self.name}"

    def __repr__(self):
        return f"<{self}: {self.value}>"


def _enum(label, members):
    # aiter knows an enumeration by the beginning of its documentation.
    kind = type(label, (_Enum,), {"members": members, "__doc__": "Members:\n\n" + "\n".join(members)})
    for name, value in members.items():
        setattr(kind, name, kind(value))
    return kind


def _of_header(label, text):
    body = re.search(r"enum class %s[^{]*{([^}]*)}" % label, text)
    members, following = {}, 0
    for line in body.group(1).split(",") if body else ():
        name, _, value = line.partition("=")
        name = re.sub(r"//.*", "", name).strip()
        if name:
            following = int(value) if value.strip() else following
            members[name] = following
            following += 1
    return members


def _of_mirror(label, path):
    if not os.path.exists(path):
        return {"RoundDown": 0}
    for node in ast.parse(open(path).read()).body:
        if isinstance(node, ast.ClassDef) and node.name == label:
            return {one.targets[0].id: one.value.value for one in node.body if isinstance(one, ast.Assign)}
    return {"RoundDown": 0}


_HEADER = open(os.path.join(TREE, "csrc/include/aiter_enum.h")).read()
_MIRROR = os.path.join(TREE, "aiter/utility/mx_types.py")
ActivationType = _enum("ActivationType", _of_header("ActivationType", _HEADER))
QuantType = _enum("QuantType", _of_header("QuantType", _HEADER))
MlaVersion = _enum("MlaVersion", _of_header("MlaVersion", _HEADER) or {"V32": 0})
MxScaleRoundMode = _enum("MxScaleRoundMode", _of_mirror("MxScaleRoundModeInt", _MIRROR))
MxDtype = _enum("MxDtype", _of_mirror("MxDtypeInt", _MIRROR))

