"""Compares a candidate with a float32 product of the same operands."""

ABSOLUTE = 1e-2
RELATIVE = 1e-2
"""An element counts as wrong outside ABSOLUTE + RELATIVE x |reference|, as aiter's checkAllclose does by default."""


def reference(torch, operands, block_n, block_k):
    """C in float32: operands scaled first, one plain product, no TF32."""
    b, b_scale = operands.weights[0]
    scaled_b = _scaled(torch, b, b_scale, block_n, block_k)
    scaled_a = _scaled(torch, operands.a, operands.a_scale, 1, block_k)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return scaled_a @ scaled_b.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def compare(torch, wanted, out, launch, poison, allowed=None):
    """Launches twice on a NaN-filled output and compares, all on the device; `found` reads what came out.

    `poison` fills everything the launch writes with NaN, so that an element never written is seen. `allowed` is the largest
    difference that counts as right, element by element.
    """
    poison()
    launch()
    first = out.clone()
    poison()
    launch()
    repeatable = (first.view(torch.uint8) == out.view(torch.uint8)).all()
    values = first.float()
    finite = torch.isfinite(values)
    # NaN compares false, so it is counted as wrong too.
    right = (values - wanted).abs() <= (ABSOLUTE + RELATIVE * wanted.abs() if allowed is None else allowed)
    return (~right).float().mean(), (~finite & torch.isfinite(wanted)).sum(), repeatable


def found(compared):
    """What `compare` found, by protocol names; waits for the device."""
    err_ratio, not_finite, repeatable = compared
    return {"err_ratio": float(err_ratio), "not_finite": int(not_finite), "repeatable": bool(repeatable)}


def _scaled(torch, values, scales, rows, columns):
    """`values` as float32 times its scales, each of which covers `rows` x `columns` elements."""
    spread = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return values.float() * spread[: values.shape[0], : values.shape[1]]
