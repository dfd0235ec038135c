"""The overlay that gemmtune puts in front of SGLang: it observes, injects tables and switches kernels.

It never edits a file of SGLang's tree, never looks at tensor values, and never breaks the server: what goes wrong
in here is written to the record file and the original function runs.
"""
