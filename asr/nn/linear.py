"""The linear layer, with the faster of two libraries for products of float32 matrices on processors.

PyTorch multiplies such matrices by MKL, which on AMD's processors leaves AVX-512 unused: oneDNN, which PyTorch has for
convolutions and for bfloat16, takes less than half the time on Zen 5.
"""

# M rows, D width of the input, N width of the output

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_MIN_PRODUCTS = 2**22  # smaller products are done before oneDNN has begun


class Linear(nn.Linear):
    """PyTorch's linear layer, with `linear` for the product."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, D) to (…, N)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b, as `torch.nn.functional.linear`.

    Args:
        x: (…, D).
        weight: (N, D).
        bias: (N,).

    Returns:
        (…, N).
    """
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    found: Tensor = _OneDnnLinear.apply(x.flatten(0, -2), weight, bias)
    return found.unflatten(0, x.shape[:-1])


def product(a: Tensor, b: Tensor) -> Tensor:
    """a·bᵀ of matrices (M, D) and (N, D) on a processor, without gradient."""
    if a.dtype == torch.float32 and _HAS_FAST_ONEDNN:
        return _onednn_product(a, b, None)
    return a @ b.t()


def _look_at_processor() -> bool:
    """Whether this is a processor that MKL is slow on."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:2000]
    except OSError:
        return False


_HAS_FAST_ONEDNN = (
    _look_at_processor()
)  # a constant, as the compiler would have to be imported to be told of a function


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or x.ndim < 2 or torch.is_autocast_enabled("cpu"):
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or not _HAS_FAST_ONEDNN:
        return False
    # A graph is compiled for all sizes; where blocks are compiled, they are large.
    return torch.compiler.is_compiling() or x.numel() * len(weight) >= _MIN_PRODUCTS


def _onednn_product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a·bᵀ + bias of matrices (M, D) and (N, D), (M, N)."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return found


# The compiler knows oneDNN's product for weights that never change alone, so for it this is an operation of its own.
_compiled_product = torch.library.custom_op("asr::onednn_product", _onednn_product, mutates_args=())
_compiled_product.register_fake(lambda a, b, bias: a.new_empty(a.shape[0], b.shape[0]))


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(M, D) to (M, N)."""
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, weight and bias, from (M, N)."""
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _multiply(grad, weight.t(), None) if needs_x else None,
            _multiply(grad.t(), x.t(), None) if needs_weight else None,
            grad.sum(dim=0) if needs_bias else None,
        )


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return (_compiled_product if torch.compiler.is_compiling() else _onednn_product)(a, b, bias)
