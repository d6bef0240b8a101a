"""Which device to compute on."""

import torch


def pick_device(name: str, *, num_threads: int = 0) -> torch.device:
    """The device of that name, or the best there is for `auto`; sets the number of processor threads.

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
