"""Memory that is no longer needed: Python's collector, kept from going through what stays, and the heap below it."""

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache


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


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # Windows knows no library of its own process
        return None
    return found
