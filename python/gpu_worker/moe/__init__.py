"""Fused MoE: SGLang's Triton `fused_moe_kernel`, lifted from the tree at hand, compiled, checked and timed.

An operation is two grouped GEMMs over one sorted routing: *up* (gate and up projection, `[tokens, hidden]` by
`[experts, 2 x inter, hidden]`) and *down* (`[tokens x topk, inter]` by `[experts, hidden, inter]`). Both read the routing
in blocks of BLOCK_SIZE_M rows, so their settings share that one and are free otherwise.
"""
