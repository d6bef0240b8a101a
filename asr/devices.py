"""Which device to compute on, and what it can."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def pick_device(name: str, *, num_threads: int = 0) -> torch.device:
    """The device of that name, or the best there is for `auto`.

    Sets the number of processor threads, and which kernels of attention may be used.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:N`.
        num_threads: Threads of the processor; 0 leaves the number as it is.

    Raises:
        ValueError: If there is no such device, or the number is negative.
    """
    if num_threads < 0:
        raise ValueError(f"num_threads is {num_threads}; it must be 0 (all) or more")
    if num_threads:
        torch.set_num_threads(num_threads)
    # cuDNN's attention plans for every new shape anew, longer than it takes; the other kernels need no plan.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}, but {torch.cuda.device_count()} CUDA devices were found; use device=cpu")
    return device


@cache
def gpu_kernels(name: str) -> ModuleType | None:
    """A module of Triton kernels, by full name, imported at the first call; None where PyTorch comes without Triton.

    Called where a tensor is on a GPU; elsewhere importing Triton is for nothing, and takes a second.
    """
    return None if find_spec("triton") is None else import_module(name)


def pick_dtype(precision: str, *, device: torch.device) -> torch.dtype:
    """What to compute matrix products in.

    Args:
        precision: `float32`; `bfloat16`, by autocast; or `auto`, which is bfloat16 where the device has instructions
            for it, as GPUs since Ampere and some processors have, and float32 elsewhere.
        device: Where the model is.

    Raises:
        ValueError: If there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    """Whether there are instructions for matrix products in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
