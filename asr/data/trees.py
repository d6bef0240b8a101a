"""From a folder tree to utterances: LibriSpeech-style transcripts at any depth, each beside the audio it belongs to.

1272/128104/1272-128104.trans.txt      a line each: ID, a blank, the words
1272/128104/1272-128104-0000.flac      ID and any suffix of `asr.audio.AUDIO_SUFFIXES`
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from asr.audio import AUDIO_SUFFIXES, probe
from asr.data.corpora import Collected, Problem
from asr.data.manifest import Utterance
from asr.text import normalize

TRANSCRIPTS_SUFFIX = ".trans.txt"
# Reading a header waits for the disk, far longer on a network's than it computes.
_NUM_THREADS = 16

# (utterance id, the folder of its transcripts file, the set's folder) -> speaker, empty where unknown
SpeakerRule = Callable[[str, Path, Path], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A transcript that was found with its audio; the audio has not been opened yet. `text` is as it was written."""

    id: str
    audio: Path
    text: str
    speaker: str


@dataclass(slots=True, kw_only=True)
class Scan:
    """The transcripts of a tree: those with audio, what is amiss, and the number of all transcripts."""

    entries: list[Entry]
    problems: list[Problem]
    num_transcripts: int


def speaker_in_id(utterance_id: str, folder: Path, top: Path) -> str:
    """LibriSpeech's own rule: the speaker is the id's part before the first dash."""
    return utterance_id.split("-", 1)[0]


def speaker_in_path(utterance_id: str, folder: Path, top: Path) -> str:
    """The rule for any tree: the speaker is the name of the folder that the transcripts file is in.

    Two exceptions: in LibriSpeech's layout (`SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN`) that folder is a chapter, and the
    speaker is the one above it; and transcripts right in the set's own folder name no speaker.
    """
    if folder == top:
        return ""
    speaker, _, chapter = utterance_id.rpartition("-")[0].partition("-")
    return speaker if chapter and (folder.parent.name, folder.name) == (speaker, chapter) else folder.name


def scan_tree(folder: Path, *, speaker: SpeakerRule) -> Scan:
    """Finds all transcripts under a folder and the audio beside them, in the order of their paths; opens no audio.

    Where one utterance has audio in several formats, the first of `AUDIO_SUFFIXES` is taken. Hidden files are ignored.
    A transcript without audio, audio without a transcript and an id that comes twice are problems.

    Raises:
        ValueError: if there are no transcripts at all, or a transcripts file is not UTF-8.
    """
    scan = Scan(entries=[], problems=[], num_transcripts=0)
    first_seen: dict[str, str] = {}
    for directory, names in _walk(folder):
        audio = _audio_by_id(directory, names)
        unused = set(audio)
        for path in (directory / name for name in names if name.endswith(TRANSCRIPTS_SUFFIX)):
            for where, utterance_id, text in _read_transcripts(path):
                scan.num_transcripts += 1
                first = first_seen.setdefault(utterance_id, where)
                if first != where:
                    scan.problems.append(Problem(where, f"the id {utterance_id} is already at {first}"))
                elif utterance_id not in audio:
                    scan.problems.append(
                        Problem(where, f"no audio {utterance_id}.* ({' '.join(AUDIO_SUFFIXES)}) beside it")
                    )
                else:
                    who = speaker(utterance_id, directory, folder)
                    scan.entries.append(Entry(id=utterance_id, audio=audio[utterance_id], text=text, speaker=who))
                unused.discard(utterance_id)
        scan.problems += [
            Problem(str(audio[each]), f"no line for {each} in a *{TRANSCRIPTS_SUFFIX} beside it")
            for each in sorted(unused)
        ]
    if not scan.num_transcripts:
        raise ValueError(
            f"{folder}: no transcripts in it; expected files *{TRANSCRIPTS_SUFFIX}, at any depth, of lines `ID words…`"
        )
    return scan


def measure(entries: Sequence[Entry], *, name: str, progress: bool) -> Collected:
    """Reads the length of each entry's audio from its header, and makes utterances with normalised text.

    Audio that cannot be read, or holds no sample, is a problem. `name` stands before the progress bar.
    """
    contents = Collected(utterances=[], num_transcripts=len(entries))
    with ThreadPool(_NUM_THREADS) as pool:
        lengths = pool.imap(_length, (entry.audio for entry in entries), chunksize=32)
        bar = tqdm(
            lengths, desc=name, total=len(entries), unit="utt", disable=None if progress else True, mininterval=0.5
        )
        for entry, length in zip(entries, bar, strict=True):
            if isinstance(length, Problem):
                contents.problems.append(length)
                continue
            contents.utterances.append(
                Utterance(
                    id=entry.id,
                    audio=entry.audio,
                    duration_s=length,
                    text=normalize(entry.text),
                    speaker=entry.speaker,
                )
            )
    return contents


def collect_tree(folder: Path, *, name: str, speaker: SpeakerRule, progress: bool) -> Collected:
    """Turns a tree into utterances and problems: `scan_tree`, then `measure`.

    Raises:
        ValueError: as `scan_tree`.
    """
    scan = scan_tree(folder, speaker=speaker)
    contents = measure(scan.entries, name=name, progress=progress)
    contents.problems = scan.problems + contents.problems
    contents.num_transcripts = scan.num_transcripts
    return contents


def _length(audio: Path) -> float | Problem:
    """Returns the length of an audio file in seconds, or why there is none."""
    try:
        duration_s = probe(audio).duration_s
    except (OSError, ValueError) as error:
        return Problem(str(audio), str(error))
    return duration_s if duration_s > 0 else Problem(str(audio), "it holds no samples")


def _walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields each folder under `top`, links followed, with the sorted names of its files, hidden ones left out."""
    visited: set[str] = set()
    for directory, folders, names in os.walk(top, followlinks=True, onerror=_raise):
        real = os.path.realpath(directory)
        if real in visited:  # a link that leads back up would otherwise never end
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(directory), sorted(name for name in names if not name.startswith("."))


def _raise(error: OSError) -> None:
    """Stops at a folder that cannot be read; os.walk would pass over it in silence."""
    raise error


def _audio_by_id(directory: Path, names: Iterable[str]) -> dict[str, Path]:
    """Returns the audio files of a folder by utterance id, the preferred format where there are several."""
    best: dict[str, tuple[int, str]] = {}
    for name in names:
        path = Path(name)
        if path.suffix.lower() in AUDIO_SUFFIXES:
            candidate = (AUDIO_SUFFIXES.index(path.suffix.lower()), name)
            best[path.stem] = min(best.get(path.stem, candidate), candidate)
    return {utterance_id: directory / name for utterance_id, (_, name) in best.items()}


def _read_transcripts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields `FILE:LINE`, id and words of each line that is not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            utterance_id, *words = line.split(maxsplit=1)
            yield f"{path}:{number}", utterance_id, words[0] if words else ""
