"""The `sglang-triton` worker: times SGLang's Triton block-FP8 kernel on one GPU, one JSON line per request.

Only the standard library is imported until `hello` is answered for; torch and Triton are imported then.
The protocol is that of `src/tune/protocol.rs`.
"""

PROTOCOL = 1
"""Version of the worker protocol; `hello` carries it."""
