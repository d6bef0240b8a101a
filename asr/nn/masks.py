"""Masks of valid positions, and how strided convolutions change lengths."""

import torch
from torch import Tensor


def valid_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Marks the positions that lie inside each sequence.

    Args:
        lengths: Integers, (B,).
        max_length: The padded length T.

    Returns:
        Booleans, (B, T), True where the position is smaller than the length.
    """
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Returns booleans (U, U), True where query u may see key v <= u."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def halved(lengths: Tensor) -> Tensor:
    """Lengths after a convolution of kernel 3, stride 2 and padding 1: ceil(length / 2)."""
    return (lengths + 1) // 2
