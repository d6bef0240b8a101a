"""How often a step of training makes the processor wait for the GPU: every wait leaves the GPU idle afterwards."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_WAITED = "called a synchronizing CUDA operation"
_PROTOTYPE = "Synchronization debug mode is a prototype"


@contextmanager
def count_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Counts what waits for the GPU, as far as PyTorch tells (`torch.cuda.set_sync_debug_mode`).

    Args:
        device: Where the model is; for anything but a GPU nothing is counted, as the processor never waits.

    Yields:
        Waits by `file:line`, filled when the context ends. All other warnings of the context are shown then.
    """
    waits: Counter[str] = Counter()
    if device.type != "cuda":
        yield waits
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # else only the first wait at each place would be told
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for each in caught:
        if _WAITED in str(each.message):
            waits[f"{Path(each.filename).name}:{each.lineno}"] += 1
        elif _PROTOTYPE not in str(each.message):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno, source=each.source)


def describe_waits(waits: Counter[str]) -> str:
    """Number and places in words, the most frequent first, such as `3 (trainer.py:212 x 2, losses.py:70)`."""
    if not waits:
        return "0"
    places = ", ".join(place if count == 1 else f"{place} x {count}" for place, count in waits.most_common())
    return f"{waits.total()} ({places})"
