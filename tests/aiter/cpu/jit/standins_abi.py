"""How aiter calls compiled code: by position in the order of its own declarations, tensors as structures of a pointer, sizes and strides."""

import ast
import ctypes
import functools
import glob
import inspect
import os
import sys

import torch

TREE = os.path.dirname(sys.modules["aiter"].__path__[0])


class aiter_tensor_t:
    """What pybind11 is handed for a tensor; strides are in elements, the dtype is a number."""

    def __init__(self, ptr, numel, ndim, shape, strides, dtype, device):
        self.ptr, self.ndim, self.shape, self.strides, self.dtype_ = ptr, ndim, shape, strides, dtype


@functools.cache
def dtypes():
    """torch's dtypes by the numbers that the tree gives them."""
    from aiter.utility.dtypes import _torch_to_aiter_dtype

    return {number: dtype for dtype, number in _torch_to_aiter_dtype.items()}


def tensor(view):
    """A tensor over the memory of `view`; anything else is left as it is."""
    if not hasattr(view, "dtype_"):
        return view
    dtype, shape, strides = dtypes()[view.dtype_], view.shape[: view.ndim], view.strides[: view.ndim]
    last = sum((size - 1) * stride for size, stride in zip(shape, strides))
    memory = (ctypes.c_char * ((last + 1) * dtype.itemsize)).from_address(view.ptr)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).as_strided(shape, strides)


def declaration(name):
    """The tree's Python declaration of the compiled function `name`, if it has one, and the type that its tensors come as."""
    for path in sorted(glob.glob(f"{TREE}/aiter/ops/*.py")):
        with open(path) as file:
            text = file.read()
        for node in ast.parse(text).body if name in text else ():
            for decorator in getattr(node, "decorator_list", ()):
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "compile_ops":
                    named = {one.arg: getattr(one.value, "value", None) for one in decorator.keywords}
                    if named.get("fc_name", node.name) == name:
                        return node, "aiter_tensor_t" if named.get("develop") else "torch.Tensor"
    return None, None


def compiled(function, name=None):
    """Has `function` called as the compiled function `name` is, with those arguments that it names itself."""
    name = name or function.__name__
    declared, handed = declaration(name)
    if declared is None:
        return function
    order = [one.arg for one in declared.args.args]
    wanted = inspect.signature(function).parameters

    def call(*arguments, **named):
        given = dict(zip(order, arguments)) | named
        return function(**{name: tensor(given[name]) for name in wanted if name in given})

    # aiter checks arguments against the signature in the first line of the documentation.
    parameters = ast.unparse(declared.args).replace("torch.Tensor", "Tensor").replace("Tensor", handed)
    call.__doc__ = f"{name}({parameters}) -> {ast.unparse(declared.returns)}"
    return call


class Function:
    """A function of a shared library: takes a C call apart."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        # The last one is the stream.
        return self.function(*map(self.plain, arguments[:-1]))

    @staticmethod
    def plain(value):
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, ctypes._Pointer):
            return value.contents if value else None
        return getattr(value, "_obj", getattr(value, "value", value))


class Library:
    """What is opened for a file in the folder of modules."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return Function(getattr(self.module, name))


def install(module):
    """Has shared libraries in the folder of modules be the functions of the Python module of the name `module`."""
    opened, folder = ctypes.CDLL, os.path.realpath(os.environ["AITER_JIT_DIR"])

    def open_library(name, *arguments, **named):
        if os.path.dirname(os.path.realpath(str(name))) == folder:
            return Library(__import__(module))
        return opened(name, *arguments, **named)

    ctypes.CDLL = open_library
    # Asserted of every tensor that is handed over.
    torch.Tensor.is_cuda = property(lambda self: True)
    torch._C._cuda_getCurrentRawStream = lambda index: 0
