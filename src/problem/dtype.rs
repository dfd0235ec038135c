//! dtypes of weights, as torch prints them.

/// FP8 dtypes (torch 2.4 to 2.9, `torch/__init__.py`).
pub const FLOAT8: [&str; 5] = [
    "torch.float8_e4m3fn",
    "torch.float8_e4m3fnuz",
    "torch.float8_e5m2",
    "torch.float8_e5m2fnuz",
    "torch.float8_e8m0fnu",
];

/// FP8 dtypes and INT8: every weight dtype of one byte an element.
pub const EIGHT_BITS: [&str; 6] = [FLOAT8[0], FLOAT8[1], FLOAT8[2], FLOAT8[3], FLOAT8[4], INT8];

/// INT8 as torch prints it.
pub const INT8: &str = "torch.int8";

/// MXFP4, packed two values a byte, and the dtype it is stored as where torch does not have it.
pub const FLOAT4: [&str; 2] = ["torch.float4_e2m1fn_x2", "torch.uint8"];

/// The FP8 dtype that aiter uses on an architecture (`aiter/utility/dtypes.py`): OCP except on gfx94x.
pub fn fp8_of(gfx: &str) -> &'static str {
    if gfx.starts_with("gfx94") {
        "torch.float8_e4m3fnuz"
    } else {
        "torch.float8_e4m3fn"
    }
}
