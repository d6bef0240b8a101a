"""Hashes that tell the prefixes of a search apart."""

from torch import Tensor

_MULTIPLIER = 6364136223846793005  # odd, with well-mixed bits: of Knuth's 64-bit linear congruential generator


def mix(hashes: Tensor, numbers: Tensor | int) -> Tensor:
    """Hashes with a number more each, integers of 63 bits: none is negative.

    The N² comparisons of N prefixes in each of T' frames mistake one for another with a probability of about N²·T'/2⁶³,
    which is 10⁻¹³ for a hundred prefixes in a hundred frames and 10⁻¹⁰ for a thousand in a thousand.
    """
    mixed = (hashes + numbers) * _MULTIPLIER
    return mixed ^ (mixed >> 29)  # the shift repeats the sign, so that the result has none
