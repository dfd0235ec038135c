def get_arch():
    return "gfx942"
