"""Memory that is no longer needed: Python's collector, kept from going through what stays; the heap; kernels."""

import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

# Several times what the encoder needs for a batch; 64 take as long as 1,024.
_NUM_KERNELS = 64
_LEAST_S = 1.0


@contextmanager
def without_collections() -> Iterator[None]:
    """For what makes hundreds of thousands of objects that all stay, such as an import of torch, or a lexicon.

    The collector would look through them again and again while they are made.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def give_back_memory() -> None:
    """Gives free memory back to the system, where C's library can (glibc); elsewhere nothing happens.

    Searches ask for pieces of memory of ever new sizes, between which more and more lies idle.
    """
    if trim := _trim():
        trim(0)


class MemoryReturns:
    """Gives free memory back, but not again within a second: the system takes its time to give pages out anew.

    Where batches take longer, as with searches, whose memory grows, that is behind each of them.
    """

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def __call__(self) -> None:
        """Gives back, if it is time."""
        now_s = time.monotonic()
        if now_s - self._last_s >= _LEAST_S:
            give_back_memory()
            self._last_s = now_s


def keep_few_kernels() -> None:
    """Has oneDNN, with which PyTorch computes on processors, and PyTorch keep the last 64 kernels in place of 1,024.

    Kernels are made for each size of a product. Searches ask for ever new sizes, so that memory would grow with the
    length of what is transcribed; so do batches in training, whose steps take less time with fewer kernels as well.
    It holds for this process and those that it starts, if none has been made yet; what the environment says goes
    before it.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(_NUM_KERNELS))


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # Windows knows no library of its own process
        return None
    return found
