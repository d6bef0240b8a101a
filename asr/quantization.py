"""Weights in eight bits for storage: half the size of float16; they are computed with in floating point as ever."""

# N rows of a matrix, M numbers of a row

import torch
from torch import Tensor

SCALES = ".row_scales"  # behind the name of a matrix: what its rows are multiplied by
_LARGEST = 127


def quantize(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rounds matrices and kernels to 255 steps a row, from minus to plus the row's largest weight.

    Args:
        weights: Finite tensors by name. What has fewer than two dimensions is little, and becomes float16; integers
            stay.

    Returns:
        Tensors for `dequantize`: each matrix (N, …) int8, and beside it its scales (N,) float32.
    """
    found = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            found[name] = tensor
        elif tensor.ndim < 2:
            found[name] = tensor.half()
        else:
            rows = tensor.float().flatten(1)  # (N, M)
            scales = rows.abs().amax(dim=1) / _LARGEST  # (N,)
            steps = rows / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
            found[name] = steps.round().to(torch.int8).view_as(tensor)
            found[name + SCALES] = scales
    return found


def dequantize(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that `quantize` rounded, matrices in float32; weights that it never saw come back as they are.

    Raises:
        ValueError: If a matrix and its scales do not fit together, or one of both is missing.
    """
    found = {}
    for name, tensor in weights.items():
        if name.endswith(SCALES):
            if name.removesuffix(SCALES) not in weights:
                raise ValueError(f"there is {name}, but nothing that it belongs to")
            continue
        scales = weights.get(name + SCALES)
        if (tensor.dtype == torch.int8) != (scales is not None):
            raise ValueError(f"{name} has {tensor.dtype}, with{'out' if scales is None else ''} scales of its rows")
        if scales is not None and scales.shape != tensor.shape[:1]:
            raise ValueError(f"{name} has {tensor.shape[0]} rows, but {scales.numel()} scales")
        found[name] = tensor if scales is None else tensor * scales.view(-1, *[1] * (tensor.ndim - 1))
    return found
