"""Text without audio: files with a sentence a line, plain or compressed, and the transcripts of manifests."""

from collections.abc import Iterator
from pathlib import Path

from asr.compression import reading_text
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
    with reading_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            yield str(number), line
