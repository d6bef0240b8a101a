"""What autocast does, for operations that it does not know: it knows PyTorch's own alone."""

import torch
from torch import Tensor


def as_autocast(x: Tensor) -> Tensor:
    """What autocast, where it is on, would make of an argument of a matrix product; numbers of 64 bits stay."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
