"""Dropout that is cheap on processors as well as on GPUs."""

import torch
from torch import Tensor, nn

_INT64_MIN = -(2**63)


class Dropout(nn.Module):
    """Drops activations with probability p in training and scales the rest by 1 / (1 - p) (Srivastava et al. 2014).

    On a processor, PyTorch draws one random number an element, one after the other: a fifth of a training step of a
    small Conformer. Here one 64-bit draw serves eight elements. The probability is then a multiple of 1/256, and the
    scale is that of the probability in use, so the expectation is exact. Other devices use PyTorch's own dropout.

    Args:
        probability: p, in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"dropout probability is {probability}; it must be in [0, 1)")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Maps a tensor of any shape to one of the same shape."""
        if not self.training or self.probability == 0:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.probability)
        return byte_dropout(x, self.probability)

    def extra_repr(self) -> str:
        """Shows the probability in the module's printout."""
        return f"{self.probability}"


def byte_dropout(x: Tensor, probability: float) -> Tensor:
    """Dropout of a tensor on a processor, one random byte an element; the probability is rounded to 1/256."""
    dropped = min(round(probability * 256), 255)
    if dropped == 0:
        return x
    draw = _compiled_random_bytes if torch.compiler.is_compiling() else _random_bytes
    # A byte below `dropped` becomes 0 and any other 1. Comparing would give booleans, which are slow to multiply by.
    kept = draw(x.detach()).view(x.shape).clamp_(dropped - 1, dropped).sub_(dropped - 1).to(x.dtype)
    scale = 256 / (256 - dropped)
    if x.dtype in (torch.float32, torch.float64):
        return x * kept.mul_(scale)  # one product less in the gradient
    return (x * kept) * scale  # 16 bits would round the factor


def _random_bytes(x: Tensor) -> Tensor:
    """One random byte for every element of a tensor, (N,), drawn eight at a time."""
    draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(_INT64_MIN, None)
    return draws.view(torch.uint8)[: x.numel()]


# The compiler does not know `random_`; as one operation of its own, it does not break a block in pieces. Its argument
# tells one draw from another: of two operations with the same arguments, the compiler keeps one.
_compiled_random_bytes = torch.library.custom_op(
    "asr::random_bytes", _random_bytes, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
_compiled_random_bytes.register_fake(lambda x: torch.empty(x.numel(), dtype=torch.uint8))
