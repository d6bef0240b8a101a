"""The manifest: JSON Lines, one utterance a line. All corpora end in manifests, and all else begins with them.

    {"id": "61-70968-0000", "audio": "61/70968/61-70968-0000.flac", "duration_s": 4.905, "text": "…", "speaker": "61"}

`audio` is absolute or relative to the manifest's folder. `speaker` may be empty or absent. The optional `start_s` and
`end_s` cut a part out of the audio, and `duration_s` is then the length of that part. Fields that are not named here
are ignored, so a manifest may carry notes of its owner. No audio is opened in this module.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A part's length may differ from its borders by rounding in whoever wrote the manifest, not by more.
_ROUNDING_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One utterance: where its audio is and what is said in it.

    Attributes:
        id: unique in its manifest, without white space (scoring files are lines of `ID words…`).
        audio: the audio file.
        duration_s: length of the utterance in seconds, above 0; of the part, where a part is cut out.
        text: the transcript, normalised by `asr.text.normalize`; may be empty (nothing is said).
        speaker: who speaks; empty where unknown.
        start_s: where the part begins in the audio, in seconds; None for the beginning.
        end_s: where the part ends in the audio, in seconds; None for the end.

    Raises:
        ValueError: if a value is outside of these ranges.
    """

    id: str
    audio: Path
    duration_s: float
    text: str
    speaker: str = ""
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        if not self.id or any(character.isspace() for character in self.id):
            raise ValueError(f"id {self.id!r} is empty or has white space in it; give each utterance a plain name")
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(f"{self.id}: duration_s is {self.duration_s}, expected seconds above 0")
        start_s = 0.0 if self.start_s is None else self.start_s
        if not (math.isfinite(start_s) and start_s >= 0):
            raise ValueError(f"{self.id}: start_s is {self.start_s}, expected seconds from 0 up")
        if self.end_s is None:
            return
        if not (math.isfinite(self.end_s) and self.end_s > start_s):
            raise ValueError(f"{self.id}: end_s is {self.end_s}, expected more than the start, {start_s} s")
        if abs(self.end_s - start_s - self.duration_s) > _ROUNDING_S:
            raise ValueError(
                f"{self.id}: duration_s is {self.duration_s}, but the part from {start_s} s to {self.end_s} s "
                f"lasts {self.end_s - start_s:g} s; duration_s is the part's length"
            )


def read(path: Path) -> list[Utterance]:
    """Reads a manifest, in the order of its lines; blank lines are allowed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is broken, an id comes twice, or there is no utterance; file and line are named.
    """
    if not path.is_file():
        what = "is a folder, not a manifest" if path.is_dir() else "no such manifest"
        raise FileNotFoundError(f"{path}: {what}; recipes/prepare.py makes the manifests of a corpus")
    utterances: list[Utterance] = []
    line_of: dict[str, int] = {}
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                utterance = _parse(line, path.parent)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            first = line_of.setdefault(utterance.id, number)
            if first != number:
                raise ValueError(f"{path}:{number}: id {utterance.id!r} is already on line {first}; ids must be unique")
            utterances.append(utterance)
    if not utterances:
        raise ValueError(f"{path}: the manifest is empty, expected one utterance a line; make it anew")
    return utterances


def write(path: Path, utterances: Iterable[Utterance]) -> None:
    """Writes a manifest whole or not at all; audio under the manifest's folder is written relative to it.

    Raises:
        ValueError: if an id comes twice or there is no utterance.
        OSError: if the file cannot be written; an older manifest then stays as it was.
    """
    folder = path.parent.absolute()
    lines: list[str] = []
    ids: set[str] = set()
    for utterance in utterances:
        if utterance.id in ids:
            raise ValueError(f"{path}: two utterances have the id {utterance.id!r}; ids must be unique in a manifest")
        ids.add(utterance.id)
        lines.append(json.dumps(_fields(utterance, folder), ensure_ascii=False) + "\n")
    if not lines:
        raise ValueError(f"{path}: there are no utterances to write; a manifest has at least one")
    write_text(path, "".join(lines))


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file whole or not at all, making its folder.

    Raises:
        OSError: if it cannot be written (no space, no permission); an older file then stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error


def _fields(utterance: Utterance, folder: Path) -> dict[str, object]:
    """Returns the JSON fields of an utterance in a manifest that lies in `folder`."""
    # Not resolved: a link that the user placed beside the manifest is meant as it stands.
    audio = utterance.audio.absolute()
    if audio.is_relative_to(folder):
        audio = audio.relative_to(folder)
    fields: dict[str, object] = {
        "id": utterance.id,
        "audio": audio.as_posix(),
        "duration_s": utterance.duration_s,
        "text": utterance.text,
        "speaker": utterance.speaker,
    }
    borders = {"start_s": utterance.start_s, "end_s": utterance.end_s}
    return fields | {name: value for name, value in borders.items() if value is not None}


def _parse(line: bytes, folder: Path) -> Utterance:
    """Turns one line into an utterance; `folder` is where relative audio begins.

    Raises:
        ValueError: if the line is not JSON, or a field is missing or wrong.
    """
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON at column {error.colno}: {error.msg}") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {_kind(record)}")
    audio = _string(record, "audio")
    if not audio:
        raise ValueError("field 'audio' is empty, expected the path of an audio file")
    duration_s = _number(record, "duration_s")
    if duration_s is None:
        raise ValueError("field 'duration_s' is missing")
    return Utterance(
        id=_string(record, "id"),
        audio=folder / audio,
        duration_s=duration_s,
        text=_string(record, "text"),
        speaker=_string({"speaker": ""} | record, "speaker"),
        start_s=_number(record, "start_s"),
        end_s=_number(record, "end_s"),
    )


def _string(record: Mapping[str, object], name: str) -> str:
    """Returns a text field; raises a ValueError if it is missing or of another type."""
    if name not in record:
        raise ValueError(f"field {name!r} is missing")
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {_kind(value)}, expected a string")
    return value


def _number(record: Mapping[str, object], name: str) -> float | None:
    """Returns a field of seconds, None where it is absent or null; raises a ValueError for another type."""
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"field {name!r} is {_kind(value)}, expected a number of seconds")
    return float(value)


def _kind(value: object) -> str:
    """Names a JSON value for a message, cut to a readable length."""
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 40 else f"{shown[:37]}…"


def spread_out(utterances: Sequence[Utterance], count: int) -> list[Utterance]:
    """At most that many utterances, evenly taken from the whole of a manifest, so that many speakers are heard."""
    count = min(count, len(utterances))
    return [utterances[number * len(utterances) // count] for number in range(count)]
