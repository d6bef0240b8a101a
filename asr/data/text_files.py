"""Text without audio: files with a sentence a line, plain or compressed, and the transcripts of manifests."""

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from asr.data import manifest


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The sentences of a text file (plain, .gz or .xz) or of a manifest (.jsonl), as they are written there.

    Yields:
        The line's number or the utterance's id, for messages, and the sentence.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no UTF-8 text, or a broken manifest.
    """
    if path.suffix == ".jsonl":
        yield from ((utterance.id, utterance.text) for utterance in manifest.read(path))
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such text; give files with a sentence a line (.gz, .xz too) or manifests")
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, start=1):
                yield str(number), line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: cut short or damaged ({error}); copy it again") from None


def _open(path: Path) -> IO[str]:
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    return cast(IO[str], openers.get(path.suffix, open)(path, "rt", encoding="utf-8-sig"))
