"""The (16, 16) layout, as a mark: where numbers lie cannot be shown without strides."""


def shuffle_weight(weight, layout=(16, 16)):
    assert layout == (16, 16)
    shuffled = weight.clone()
    shuffled.is_shuffled = True
    shuffled.tiled = True  # what a kernel reads; the mark above can be lost
    return shuffled
