"""Python's collector of garbage, kept from going through what stays."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
