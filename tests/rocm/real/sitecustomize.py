"""Makes every process of a real torch look like ROCm before SGLang or aiter is imported, however it was started.

The overlay's own `sitecustomize` comes first where there is one, and runs this after it.
"""

import sys


class _BeforeSGLang:
    """Finds nothing; the first question about SGLang or aiter brings the look."""

    def find_spec(self, name, path=None, target=None):
        if name in ("sglang", "aiter"):
            sys.meta_path.remove(self)
            import rocm_look  # noqa: F401

        return None


sys.meta_path.insert(0, _BeforeSGLang())
