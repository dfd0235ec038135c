"""Launches a plan: first through Triton's own path, then straight through the compiled kernel."""


from gpu_worker.compile_child import warm_up


def load_ahead(module, plan, out_dtype, loaded):
    """Loads what `plan` launches without launching it. Found in Triton's disk cache, where a compile child left it."""
    missing = [step for step in ("main", "reduce") if (plan.key, step) not in loaded]
    if missing == ["reduce"] and not plan.reduce or not missing:
        return
    for step, compiled in zip(("main", "reduce"), warm_up(module, plan, out_dtype)):
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
        main = [{**activations, "B": b, "Bs": b_scale, **meant} for b, b_scale in operands.weights]
        self._steps = [_Step(getattr(module, plan.function), plan.grid, main, (plan.key, "main"), loaded)]
        if plan.reduce:
            reduce = {"Parts": self._target, "Out": operands.out, **plan.reduce_constants}
            function = getattr(module, plan.reduce)
            self._steps.append(_Step(function, plan.reduce_grid, [reduce], (plan.key, "reduce"), loaded))

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


class _Step:
    """One kernel with its arguments, one set for each copy of the weights."""

    DEFAULTS = {"SWAP_AB": False, "SPLIT_K": 1}
    """Parameters that SGLang's launcher leaves to the kernel's own defaults."""

    def __init__(self, function, grid, named, key, kept):
        self._function = function
        self._grid = grid
        self._named = named
        self._key = key
        self._kept = kept
        self._direct = None
        self._arguments = None
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
                self._direct(*self._arguments[copy % len(self._arguments)])
                return
            except TypeError:
                # This Triton's launcher takes other arguments; nothing was launched.
                self._direct = None
                self._kept[self._key] = None
        compiled = self._function[self._grid](**self._named[copy % len(self._named)])
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
        if any(name not in self._named[0] and name not in self.DEFAULTS for name in order):
            return
        self._arguments = [[values.get(name, self.DEFAULTS.get(name)) for name in order] for values in self._named]
        self._direct = compiled[tuple(self._grid) + (1,) * (3 - len(self._grid))]
