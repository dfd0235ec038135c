

# Appended to the stand-in of `tests/realtrees`, whose kernels read memory as the compiled ones do: the look-ups and modules
# of the played site around them. Any name can be asked of that package, so the import goes past it.
import importlib  # noqa: E402

_lookup = importlib.import_module("aiter._lookup")
gemm_a8w8_blockscale = _lookup.tuned("gemm_a8w8_blockscale", gemm_a8w8_blockscale)
