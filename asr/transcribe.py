"""Audio files, folders and standard input to transcripts, on disk or on standard output."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from asr import audio
from asr.audio import STANDARD_INPUT, SegmentationConfig, Source, find_sources
from asr.checkpoint import LoadedModel
from asr.decoding.search import DecodingConfig
from asr.errors import one_line
from asr.transcriber import Transcriber
from asr.transcript import Transcript
from asr.variants import TunedSearch
from asr.writers import FORMATS

# Spares short work the flicker.
_PROGRESS_DELAY_S = 1.0
_PROGRESS_FORMAT = "{desc}: {n_fmt} of {total_fmt} {unit} |{bar}| {elapsed}<{remaining}{postfix}"


def refuse_clashes(sources: Sequence[Source]) -> None:
    """Checks that every file has a transcript of its own.

    Raises:
        ValueError: If two files would write the same transcript.
    """
    taken: dict[Path, Path] = {}
    for source in sources:
        other = taken.setdefault(source.relative, source.path)
        if other is not source.path:
            raise ValueError(
                f"{other} and {source.path} would both become the transcript {source.relative}; transcribe them apart"
            )


def transcribe_files(
    loaded: LoadedModel,
    inputs: Sequence[Path],
    *,
    format: str,
    output_dir: Path | None,
    decoding: DecodingConfig | None = None,
    tuned: TunedSearch | None = None,
    segmentation: SegmentationConfig | None = None,
    precision: str = "auto",
    progress: bool = True,
) -> list[Path]:
    """Transcribes files and all audio in folders; a bad file is named on standard error and does not stop the rest.

    Args:
        loaded: The recogniser.
        inputs: Files and folders; `-` is standard input.
        format: A key of `asr.writers.FORMATS`.
        output_dir: `a/b.flac` under a given folder becomes `OUTPUT_DIR/a/b` with the format's own ending; None prints
            to standard output, where the text or JSON of each of several files is one line.
        decoding: How to search; greedy by default.
        tuned: Weights and calibration for this way to search.
        segmentation: How to cut long audio.
        precision: As for `asr.devices.pick_dtype`.
        progress: Whether to show a progress bar where standard error is a terminal, and a summary.

    Returns:
        The files that could not be transcribed.

    Raises:
        ValueError: If there is no such format or precision, nothing to transcribe, the output folder is a file, or
            several files without one cannot follow each other in this format.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; choose one of {', '.join(FORMATS)}")
    if output_dir is not None and output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"{output_dir}: is a file; name a folder for the transcripts")
    sources = find_sources(inputs)
    write = FORMATS[format].write
    if output_dir is not None:
        refuse_clashes(sources)
    elif len(sources) > 1:
        write = _entry_writer(format, num_files=len(sources))
    transcriber = Transcriber(loaded, decoding=decoding, tuned=tuned, segmentation=segmentation, precision=precision)
    failures: list[Path] = []
    with ExitStack() as stack:
        inputs_by_name = [(str(source.path), stack.enter_context(_opened(source))) for source in sources]
        shown = stack.enter_context(_Progress(inputs_by_name, is_shown=progress))
        outcomes = stack.enter_context(closing(transcriber.stream(inputs_by_name, on_progress=shown.recognized)))
        for source, outcome in zip(sources, outcomes, strict=True):
            try:
                transcript = outcome.get()
            except (audio.AudioError, OSError) as error:
                tqdm.write(f"error: {one_line(error)}", file=sys.stderr)
                failures.append(source.path)
            else:
                _deliver(write(transcript), source, FORMATS[format].suffix, output_dir)
            shown.finished_file()
    if progress and output_dir is not None:
        done = f"{len(sources) - len(failures)} of {len(sources)} files"
        print(f"{done}, {shown.audio_s / 60:.1f} minutes, {shown.speed()}; {output_dir}", file=sys.stderr)
    return failures


@contextmanager
def _opened(source: Source) -> Iterator[Path | BinaryIO]:
    """The path of a file, or standard input, copied here if it is a pipe: Ctrl-C reaches this thread alone."""
    if source.path != STANDARD_INPUT:
        yield source.path
        return
    with audio.seekable(sys.stdin.buffer, name=str(STANDARD_INPUT)) as stream:
        yield stream


class _Progress:
    """A bar on standard error, of files or of the seconds of a single file, with the speed in times real time.

    Args:
        inputs: Names and files.
        is_shown: Whether to show it; where standard error is no terminal, it stays hidden: a log has lines only.
    """

    def __init__(self, inputs: Sequence[tuple[str, Path | BinaryIO]], *, is_shown: bool) -> None:
        self.audio_s = 0.0
        self._started = time.perf_counter()
        self._counts_seconds = len(inputs) == 1
        is_shown = is_shown and sys.stderr.isatty()
        total = len(inputs)
        if self._counts_seconds and is_shown:
            total = _duration_s(inputs[0][1])
        self._bar = tqdm(
            total=total or None,
            desc="transcribing",
            unit="s" if self._counts_seconds else "files",
            bar_format=_PROGRESS_FORMAT,
            disable=not is_shown,
            leave=False,
            delay=_PROGRESS_DELAY_S,
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def recognized(self, seconds: float) -> None:
        """Counts audio."""
        self.audio_s += seconds
        self._bar.set_postfix_str(f"{self.audio_s / 60:.1f} minutes, {self.speed()}", refresh=False)
        self._bar.update(int(self.audio_s) - self._bar.n if self._counts_seconds else 0)

    def finished_file(self) -> None:
        """Counts a file, a bad one too."""
        self._bar.update(0 if self._counts_seconds else 1)

    def speed(self) -> str:
        """Seconds of audio recognised in a second."""
        return f"{self.audio_s / (time.perf_counter() - self._started):.0f} times real time"


def _duration_s(source: Path | BinaryIO) -> int:
    """Whole seconds of a file; 0 where it cannot be read, which its transcription will report."""
    try:
        return round(audio.probe(source).duration_s)
    except (audio.AudioError, OSError):
        return 0


def _entry_writer(format: str, *, num_files: int) -> Callable[[Transcript], str]:
    write = FORMATS[format].write_entry
    if write is None:
        raise ValueError(
            f"{num_files} files cannot follow each other as {format} on standard output; "
            "name a folder for their transcripts with --output-dir"
        )
    return write


def _deliver(text: str, source: Source, suffix: str, output_dir: Path | None) -> None:
    if output_dir is None:
        tqdm.write(text, file=sys.stdout, end="")
        return
    path = output_dir / source.relative.with_name(f"{source.relative.name}{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
