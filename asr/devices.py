"""Which device to compute on."""

import torch


def pick_device(name: str, *, num_threads: int = 0) -> torch.device:
    """The device of that name, or the best there is for `auto`; sets the number of processor threads.

    Raises:
        ValueError: If there is no such device.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}, but {torch.cuda.device_count()} CUDA devices were found; use device=cpu")
    return device
