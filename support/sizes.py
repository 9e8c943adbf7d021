"""Which sizes make a network; open it where sizes are refused."""

from math import log2

from support.errors import InputError


def count_layers(size_image: int, size_kernel: int, num_gen_channels: int) -> int:
    """Returns how many layers of stride 2 E and G have.

    After those of E the feature map has 2 ** (size_kernel // 2) pixels a side, 4 at the defaults. Raises InputError
    where the sizes fit no network: the image must be a power of two, and each of G's layers has half the channels of
    the one before.
    """
    layers = int(log2(max(1, size_image))) - size_kernel // 2
    if size_image.bit_count() != 1 or layers < 1:
        smallest = 2 ** (size_kernel // 2 + 1)
        raise InputError(
            f"image size {size_image} is not a power of two that a kernel of {size_kernel} fits: take {smallest}, "
            f"{2 * smallest}, {4 * smallest} or a further one"
        )
    if num_gen_channels < 1 or num_gen_channels % 2 ** (layers + 1):
        raise InputError(
            f"{num_gen_channels} generator channels cannot be halved {layers + 1} times: "
            f"take a multiple of {2 ** (layers + 1)}"
        )
    return layers
