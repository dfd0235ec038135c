"""The dispatcher, as far as its text says something: splits of K are not handed on."""


def gemm_a8w8_blockscale(XQ, WQ, x_scale, w_scale):
    config = get_CKGEMM_config(XQ, WQ)
    if config["libtype"] == "cktile":
        return gemm_a8w8_blockscale_cktile(XQ, WQ, x_scale, w_scale)
    assert config["libtype"] == "ck"
    return gemm_a8w8_blockscale_ck(XQ, WQ, x_scale, w_scale)


def gemm_a8w8_bpreshuffle(XQ, WQ, x_scale, w_scale):
    config = get_GEMM_config_with_quant_type(XQ, WQ)
    return gemm_a8w8_bpreshuffle_ck(XQ, WQ, x_scale, w_scale, config["splitK"])
