"""Text files that may be compressed."""

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast


@contextmanager
def reading_text(path: Path) -> Iterator[IO[str]]:
    """Opens UTF-8 text to read, plain, .gz or .xz by its ending.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it turns out, here or while it is read, to be cut short, damaged or no UTF-8 text.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with cast(IO[str], openers.get(path.suffix, open)(path, "rt", encoding="utf-8-sig")) as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: cut short or damaged ({error}); copy it again") from None
