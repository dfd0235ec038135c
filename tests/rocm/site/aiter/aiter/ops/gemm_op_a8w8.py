"""How a row's kernel is chosen at 303a583c, as far as a reader of this text can tell: never run.

CK and CKTile are given no kernel: their modules search a table of their own. Only the assembly branch hands a name on.
"""


def gemm_a8w8_blockscale_ck(XQ, WQ, x_scale, w_scale, Out): ...


def gemm_a8w8_blockscale_cktile(XQ, WQ, x_scale, w_scale, Out, isBpreshuffled=False): ...


def gemm_a8w8_blockscale_bpreshuffle_ck(XQ, WQ, x_scale, w_scale, Out): ...


def gemm_a8w8_blockscale_bpreshuffle_cktile(XQ, WQ, x_scale, w_scale, Out, isBpreshuffled=True): ...


def gemm_a8w8_blockscale_bpreshuffle_asm(XQ, WQ, Out, x_scale, w_scale, splitK=None, kernelName=None): ...


def gemm_a8w8_blockscale(XQ, WQ, x_scale, w_scale, Y):
    config = get_CKGEMM_config(XQ, WQ)
    if config is not None:
        libtype = config["libtype"]
        if libtype == "ck":
            return gemm_a8w8_blockscale_ck(XQ, WQ, x_scale, w_scale, Y)
        elif libtype == "cktile":
            return gemm_a8w8_blockscale_cktile(XQ, WQ, x_scale, w_scale, Y)
        else:
            assert 0, f"Unsupported libtype {libtype}"
    return gemm_a8w8_blockscale_ck(XQ, WQ, x_scale, w_scale, Y)


def gemm_a8w8_blockscale_bpreshuffle(XQ, WQ, x_scale, w_scale, Y):
    config = get_CKGEMM_config(XQ, WQ)
    if config is not None:
        libtype = config["libtype"]
        if libtype == "cktile":
            return gemm_a8w8_blockscale_bpreshuffle_cktile(XQ, WQ, x_scale, w_scale, Y)
        elif libtype == "ck":
            return gemm_a8w8_blockscale_bpreshuffle_ck(XQ, WQ, x_scale, w_scale, Y)
        elif libtype == "asm":
            kernelName = config["kernelName"]
            splitK = config["splitK"]
            return gemm_a8w8_blockscale_bpreshuffle_asm(
                XQ, WQ, Y, x_scale, w_scale, splitK=splitK, kernelName=kernelName
            )
    return gemm_a8w8_blockscale_bpreshuffle_ck(XQ, WQ, x_scale, w_scale, Y)


def gemm_a8w8_bpreshuffle_ck(XQ, WQ, x_scale, w_scale, Out, splitK=0): ...


def gemm_a8w8_bpreshuffle_cktile(XQ, WQ, x_scale, w_scale, out, splitK=0): ...


def gemm_a8w8_bpreshuffle(XQ, WQ, x_scale, w_scale, Y):
    config = get_GEMM_config_with_quant_type(XQ, WQ)
    if config is not None:
        libtype = config["libtype"]
        splitK = int(config["splitK"])
        if libtype == "ck":
            return gemm_a8w8_bpreshuffle_ck(XQ, WQ, x_scale, w_scale, Y, splitK)
        elif libtype == "cktile":
            return gemm_a8w8_bpreshuffle_cktile(XQ, WQ, x_scale, w_scale, Y, splitK)
        elif libtype == "flydsl" and is_flydsl_available():
            return gemm_a8w8_bpreshuffle_flydsl(XQ, WQ, x_scale, w_scale, Y, config)
    else:
        return gemm_a8w8_bpreshuffle_ck(XQ, WQ, x_scale, w_scale, Y, 0)
