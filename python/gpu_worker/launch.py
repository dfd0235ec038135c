"""Launches a plan: first through Triton's own path, then straight through the compiled kernel."""

from gpu_worker.compile_child import warm_up


def find_compiled(module, plan, out_dtype, loaded):
    """What `plan` launches and is not loaded yet, read from Triton's disk cache, where a compile child left it."""
    steps = ("main", "reduce") if plan.reduce else ("main",)
    if all((plan.key, step) in loaded for step in steps):
        return []
    return warm_up(module, plan, out_dtype)


def load(plan, found, loaded):
    """Loads what `find_compiled` found without launching it."""
    for step, compiled in zip(("main", "reduce"), found):
        try:
            # Triton loads a compiled kernel when it is asked for a launcher on some grid.
            compiled[(1, 1, 1)]
        except Exception:
            # Half loaded, it would be launched as it is (3.6, CompiledKernel._init_handles); so it is loaded anew.
            if getattr(compiled, "module", None) is None and hasattr(compiled, "_run"):
                compiled._run = None
            raise
        loaded.setdefault((plan.key, step), compiled)


class Launch:
    """One candidate on one set of operands; `run(copy)` enqueues it on the current stream.

    `loaded` is kept between launches: compiled kernels by plan, so that each is looked up and loaded once.
    """

    def __init__(self, module, plan, operands, loaded):
        self._out = operands.out
        self._target = operands.partial(plan.split_k) if plan.split_k > 1 else operands.out
        meant = {**dict(plan.scalars), **dict(plan.constants)}
        activations = {"A": operands.a, "C": self._target, "As": operands.a_scale}
        weights = [{"B": b, "Bs": b_scale} for b, b_scale in operands.weights]
        function = getattr(module, plan.function)
        self._steps = [Step(function, plan.grid, {**activations, **meant}, weights, (plan.key, "main"), loaded)]
        if plan.reduce:
            reduce = {"Parts": self._target, "Out": operands.out, **plan.reduce_constants}
            function = getattr(module, plan.reduce)
            self._steps.append(Step(function, plan.reduce_grid, reduce, [{}], (plan.key, "reduce"), loaded))

    def poison(self):
        """Fills everything a launch writes with NaN."""
        self._target.fill_(float("nan"))
        self._out.fill_(float("nan"))

    def load(self):
        """Loads what was never loaded, by launching it once."""
        if not all(step.loaded for step in self._steps):
            self.run(0)

    def run(self, copy):
        """Enqueues one launch on weights number `copy`."""
        for step in self._steps:
            step.run(copy)


class Step:
    """One kernel with its arguments: those that never change, and those of each copy of the weights."""

    DEFAULTS = {"SWAP_AB": False, "SPLIT_K": 1}
    """Parameters that SGLang's launcher leaves to the kernel's own defaults."""

    def __init__(self, function, grid, fixed, copies, key, kept):
        self._function = function
        self._grid = grid
        self._fixed = fixed
        self._copies = copies
        self._key = key
        self._kept = kept
        self._direct = None
        self._order = ()
        self._arguments = [None] * len(copies)
        if key in kept:
            self._take(kept[key])

    @property
    def loaded(self):
        """Whether the kernel is on the device."""
        return self._key in self._kept

    def run(self, copy):
        """Enqueues the kernel."""
        if self._direct is not None:
            try:
                self._direct(*self._arguments_of(copy % len(self._copies)))
                return
            except TypeError:
                # This Triton's launcher takes other arguments; nothing was launched.
                self._direct = None
                self._kept[self._key] = None
        compiled = self._function[self._grid](**self._fixed, **self._copies[copy % len(self._copies)])
        if self._key not in self._kept:
            self._kept[self._key] = compiled
            self._take(compiled)

    def _take(self, compiled):
        """Learns the compiled kernel's own launcher. It skips the binding of arguments (10 to 20 µs of host time),
        which would leave the device idle between short kernels, and takes all parameters in order, those that were
        compiled in included."""
        order = getattr(self._function, "arg_names", None)
        if compiled is None or not order or not hasattr(compiled, "__getitem__"):
            return
        if any(name not in self._fixed and name not in self._copies[0] and name not in self.DEFAULTS for name in order):
            return
        self._order = order
        self._direct = compiled[tuple(self._grid) + (1,) * (3 - len(self._grid))]

    def _arguments_of(self, copy):
        """The arguments in the launcher's order, put together when a copy is used for the first time."""
        arguments = self._arguments[copy]
        if arguments is None:
            named = {**self.DEFAULTS, **self._fixed, **self._copies[copy]}
            arguments = self._arguments[copy] = [named[name] for name in self._order]
        return arguments
