"""Dropout that is cheap on processors, and on GPUs in compiled blocks too."""

import torch
from torch import Tensor, nn

_INT64_MIN = -(2**63)


class Dropout(nn.Module):
    """Drops activations with probability p in training and scales the rest by 1 / (1 - p) (Srivastava et al. 2014).

    On a processor, PyTorch draws one random number an element, one after the other: a fifth of a training step of a
    small Conformer. Here one 64-bit draw serves eight elements. The probability is then a multiple of 1/256, and the
    scale is that of the probability in use, so the expectation is exact.

    On a GPU, the compiler would count out four random numbers (Philox) for every element and use one of them, in the
    backward pass again: longer than to read and write the element. In compiled blocks, one draw of every row and one of
    every column are mixed instead; elsewhere it is PyTorch's own dropout.

    Args:
        probability: p, in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"dropout probability is {probability}; it must be in [0, 1)")
        self.probability = probability

    def forward(self, x: Tensor, *, marker: Tensor | None = None) -> Tensor:
        """Maps a tensor of any shape to one of the same shape.

        Args:
            x: Any shape; in compiled blocks on a GPU, one column at least.
            marker: A tensor that no other dropout of a compiled block is given, by default x. The compiler keeps it in
                memory; where x need not be there, as it is cheap to compute anew, name what it is computed from.
        """
        if not self.training or self.probability == 0:
            return x
        if x.device.type == "cpu":
            return byte_dropout(x, self.probability, marker=marker)
        if torch.compiler.is_compiling():
            return hashed_dropout(x, self.probability, marker=marker)
        return nn.functional.dropout(x, self.probability)

    def extra_repr(self) -> str:
        """Shows the probability in the module's printout."""
        return f"{self.probability}"


def byte_dropout(x: Tensor, probability: float, *, marker: Tensor | None = None) -> Tensor:
    """Dropout of a tensor on a processor, one random byte an element; the probability is rounded to 1/256.

    Args:
        x: Any shape.
        probability: In [0, 1).
        marker: As of `Dropout`.
    """
    dropped = min(round(probability * 256), 255)
    if dropped == 0:
        return x
    draw = _compiled_random_bytes if torch.compiler.is_compiling() else _random_bytes
    # A byte below `dropped` becomes 0 and any other 1. Comparing would give booleans, which are slow to multiply by.
    drawn = draw((x if marker is None else marker).detach(), x.numel()).view(x.shape)
    kept = drawn.clamp_(dropped - 1, dropped).sub_(dropped - 1).to(x.dtype)
    scale = 256 / (256 - dropped)
    if x.dtype in (torch.float32, torch.float64):
        return x * kept.mul_(scale)  # one product less in the gradient
    return (x * kept) * scale  # 16 bits would round the factor


def hashed_dropout(x: Tensor, probability: float, *, marker: Tensor | None = None) -> Tensor:
    """Dropout by a random number of every row and one of every column, mixed as MurmurHash3 ends.

    Args:
        x: (…, D), D at least 1.
        probability: In [0, 1).
        marker: As of `Dropout`.
    """
    num_rows, num_columns = x.numel() // x.shape[-1], x.shape[-1]
    draws = _random_integers((x if marker is None else marker).detach(), num_rows + num_columns)
    of_columns, of_rows = draws.split([num_columns, num_rows])  # in that order, columns are loaded several at once
    mixed = of_rows.view(*x.shape[:-1], 1) ^ of_columns
    # Of integers with a sign, a shift to the right fills up with the sign; 0x85EBCA6B and 0xC2B2AE35 are negative.
    mixed = (mixed ^ ((mixed >> 16) & 0xFFFF)) * (0x85EBCA6B - 2**32)
    mixed = (mixed ^ ((mixed >> 13) & 0x7FFFF)) * (0xC2B2AE35 - 2**32)
    kept = mixed >= round(probability * 2**32) - 2**31
    return torch.where(kept, x * (1 / (1 - probability)), 0.0)


def _random_bytes(_: Tensor, count: int) -> Tensor:
    """Random bytes (N,), drawn eight at a time."""
    draws = torch.empty((count + 7) // 8, dtype=torch.int64).random_(_INT64_MIN, None)
    return draws.view(torch.uint8)[:count]


# The compiler does not know `random_`; as operations of their own, draws do not break a block in pieces. The marker
# tells one from another: of two operations with the same arguments, the compiler keeps one.
_compiled_random_bytes = torch.library.custom_op(
    "asr::random_bytes", _random_bytes, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
_compiled_random_bytes.register_fake(lambda _, count: torch.empty(count, dtype=torch.uint8))


@torch.library.custom_op("asr::random_integers", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _random_integers(like: Tensor, count: int) -> Tensor:
    """Random integers of 32 bits, (N,), on the device of a tensor."""
    return torch.empty(count, dtype=torch.int32, device=like.device).random_(-(2**31), 2**31)


@_random_integers.register_fake
def _(like: Tensor, count: int) -> Tensor:
    return like.new_empty(count, dtype=torch.int32)
