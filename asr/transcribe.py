"""Audio files of any length to transcripts, in bounded memory."""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from asr import audio
from asr.audio import STANDARD_INPUT, Source, find_sources
from asr.audio import SegmentationConfig as SegmentationConfig
from asr.audio import segment_stream as segment_stream
from asr.checkpoint import LoadedModel
from asr.decoding.search import DecodingConfig, NotFiniteError, Recognition
from asr.errors import one_line
from asr.recognition import SearchBuilder, encode_batch, pack, pick_dtype, read_ahead
from asr.transcript import Segment, Transcript, make_segment, make_transcript
from asr.variants import TunedSearch, with_weights
from asr.writers import FORMATS

# S samples

# Audio that waits for a batch, in batches: the more there is to choose from, the less padding, and the more memory.
_BATCHES_AHEAD = 4
# Segments that are cut and wait to be looked at.
_SEGMENTS_AHEAD = 8
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
        precision: As for `asr.recognition.pick_dtype`.
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file: its transcript, or why there is none."""

    result: Transcript | audio.AudioError | OSError

    def get(self) -> Transcript:
        """The transcript.

        Raises:
            AudioError: If the file cannot be read, or the model's answer to it is not a number.
            OSError: If the system fails while it is read.
        """
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@dataclass(eq=False, slots=True)
class _Recording:
    """A file on its way; its segments are recognised in any order.

    Attributes:
        name: What its transcript calls it.
        segments: What was recognised, by the first sample.
        num_segments: How many there will be, once it is read to its end.
        num_samples: Likewise.
        fault: Why it cannot be transcribed.
    """

    name: str
    segments: dict[int, Segment] = field(default_factory=dict)
    num_segments: int | None = None
    num_samples: int = 0
    fault: audio.AudioError | OSError | None = None

    def is_done(self) -> bool:
        """Whether nothing more is to come."""
        return self.fault is not None or len(self.segments) == self.num_segments

    def outcome(self, *, sample_rate: int) -> Outcome:
        """Joins the segments in order of time."""
        if self.fault is not None:
            return Outcome(self.fault)
        segments = [self.segments[start] for start in sorted(self.segments)]
        return Outcome(make_transcript(self.name, duration_s=self.num_samples / sample_rate, segments=segments))


@dataclass(eq=False, slots=True)
class _Piece:
    """A waveform (S,) that is recognised as one, and where it begins in its recording, in samples."""

    recording: _Recording
    start: int
    waveform: Tensor


@dataclass(frozen=True, slots=True)
class _Read:
    """Stands behind the last piece of a recording, and says what the reader has found in it."""

    recording: _Recording
    num_segments: int
    num_samples: int
    fault: audio.AudioError | OSError | None


def _padded_size(num_samples: int, *, sample_rate: int) -> int:
    """Whole seconds, so that shapes recur: kernels are prepared for each, and odd sizes split the memory up."""
    return -(-num_samples // sample_rate) * sample_rate


class _Workbench:
    """Pieces of recordings that wait for a batch, so that those of like length are recognised together.

    Args:
        max_batch_s: Most seconds of a batch, padding included.
        sample_rate: In Hz.
    """

    def __init__(self, *, max_batch_s: float, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._max_samples = int(max_batch_s * sample_rate)
        self._recordings: deque[_Recording] = deque()
        self._pieces: list[_Piece] = []

    def put(self, entry: _Recording | _Piece | _Read) -> None:
        """Takes what the reader sends: a recording, then its pieces, then its end."""
        if isinstance(entry, _Recording):
            self._recordings.append(entry)
        elif isinstance(entry, _Piece):
            self._pieces.append(entry)
        else:
            recording = entry.recording
            recording.num_segments, recording.num_samples = entry.num_segments, entry.num_samples
            recording.fault = recording.fault or entry.fault

    def is_full(self) -> bool:
        """Whether there is enough to choose from."""
        return sum(len(piece.waveform) for piece in self._pieces) >= _BATCHES_AHEAD * self._max_samples

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._pieces

    def take_batch(self) -> list[_Piece]:
        """Of all batches that could be made of what waits, the one with the piece that has waited longest."""
        batches = pack(self._pieces, length=self._padded_size, most=self._max_samples)
        oldest = self._pieces[0]
        batch = next(batch for batch in batches if any(piece is oldest for piece in batch))
        taken = set(map(id, batch))
        self._pieces = [piece for piece in self._pieces if id(piece) not in taken]
        return batch

    def _padded_size(self, piece: _Piece) -> int:
        return _padded_size(len(piece.waveform), sample_rate=self._sample_rate)

    def take_finished(self) -> Iterator[_Recording]:
        """Recordings that are done, in the order in which they came; of those with a fault, no piece waits longer."""
        self._pieces = [piece for piece in self._pieces if piece.recording.fault is None]
        while self._recordings and self._recordings[0].is_done():
            yield self._recordings.popleft()


class Transcriber:
    """Turns audio of any length into transcripts, in bounded memory; made once, used for any number of files.

    Args:
        loaded: The recogniser.
        decoding: How to search; greedy by default.
        tuned: Weights and calibration for this way to search.
        segmentation: How to cut long audio.
        precision: As for `asr.recognition.pick_dtype`.

    Raises:
        FileNotFoundError: If a language model or the file of hotwords is missing.
        ValueError: If the search does not fit the recogniser, or there is no such precision.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        decoding: DecodingConfig | None = None,
        tuned: TunedSearch | None = None,
        segmentation: SegmentationConfig | None = None,
        precision: str = "auto",
    ) -> None:
        self._tuned = tuned or TunedSearch()
        self._loaded = loaded
        self._segmentation = segmentation or SegmentationConfig()
        self._dtype = pick_dtype(precision, device=loaded.device)
        self._search = SearchBuilder(loaded).build(with_weights(decoding or DecodingConfig(), self._tuned.weights))

    def __call__(self, source: Path | BinaryIO, *, name: str = "") -> Transcript:
        """Transcribes one audio file, or an open stream of one.

        Args:
            source: Any audio that soundfile reads, of any rate, length and number of channels.
            name: What the transcript and messages call it; by default the path as given.

        Raises:
            AudioError: If it cannot be read, or the model's answer to it is not a number; file and reason are named.
        """
        name = name or audio.source_name(source)
        with audio.seekable(source, name=name) as file, closing(self.stream([(name, file)])) as outcomes:
            return next(outcomes).get()

    def stream(
        self,
        inputs: Iterable[tuple[str, Path | BinaryIO]],
        *,
        on_progress: Callable[[float], None] | None = None,
    ) -> Generator[Outcome, None, None]:
        """Transcribes many files: read ahead in a thread, packed by length into batches across files.

        A file's segments, and but for rounding its scores, are those that it gets alone.

        Args:
            inputs: Names and files, gone through as they are needed; streams must be able to seek.
            on_progress: Called with the seconds of audio of each batch that was recognised.

        Yields:
            What became of each file, in order, as soon as it and all before it are done.
        """
        bench = _Workbench(max_batch_s=self._segmentation.max_batch_s, sample_rate=self._loaded.sample_rate)
        with closing(read_ahead(self._read(inputs), num_ahead=_SEGMENTS_AHEAD)) as entries:
            for entry in entries:
                bench.put(entry)
                yield from self._work(bench, on_progress, until=lambda: not bench.is_full())
        yield from self._work(bench, on_progress, until=bench.is_empty)

    def _work(
        self, bench: _Workbench, on_progress: Callable[[float], None] | None, *, until: Callable[[], bool]
    ) -> Iterator[Outcome]:
        """Recognises batches, and yields what is finished."""
        rate = self._loaded.sample_rate
        yield from (recording.outcome(sample_rate=rate) for recording in bench.take_finished())
        while not until():
            batch = bench.take_batch()
            self._recognize(batch)
            if on_progress is not None:
                on_progress(sum(len(piece.waveform) for piece in batch) / rate)
            yield from (recording.outcome(sample_rate=rate) for recording in bench.take_finished())

    def _read(
        self, inputs: Iterable[tuple[str, Path | BinaryIO]]
    ) -> Generator[_Recording | _Piece | _Read, None, None]:
        """Reads files one after the other and cuts them."""
        rate = self._loaded.sample_rate
        for name, source in inputs:
            recording = _Recording(name)
            yield recording
            num_segments, end = 0, 0
            fault: audio.AudioError | OSError | None = None
            try:
                with closing(audio.stream(source, sample_rate=rate, name=name)) as blocks:
                    for waveform in segment_stream(blocks, sample_rate=rate, config=self._segmentation):
                        yield _Piece(recording, end, waveform)
                        num_segments, end = num_segments + 1, end + len(waveform)
                        if recording.fault is not None:
                            break
            except (audio.AudioError, OSError) as error:
                fault = error
            yield _Read(recording, num_segments, end, fault)

    def _recognize(self, pieces: Sequence[_Piece]) -> None:
        """Adds segments to the recordings; one that the model has no number for gets a fault, the others do not."""
        try:
            found = self._search_batch([piece.waveform for piece in pieces])
        except NotFiniteError as error:
            if len(pieces) == 1:
                recording = pieces[0].recording
                recording.fault = audio.AudioError(f"{recording.name}: {error}")
                return
            middle = len(pieces) // 2
            self._recognize(pieces[:middle])
            self._recognize(pieces[middle:])
            return
        loaded = self._loaded
        for piece, recognition in zip(pieces, found, strict=True):
            piece.recording.segments[piece.start] = make_segment(
                recognition,
                loaded.tokenizer,
                start_s=piece.start / loaded.sample_rate,
                end_s=(piece.start + len(piece.waveform)) / loaded.sample_rate,
                frame_s=loaded.frame_s,
                calibration=self._tuned.calibration,
            )

    def _search_batch(self, waveforms: list[Tensor]) -> list[Recognition]:
        """What is found in each of several waveforms (S,)."""
        loaded = self._loaded
        longest = max(map(len, waveforms))
        padded = torch.zeros(len(waveforms), _padded_size(longest, sample_rate=loaded.sample_rate))  # (B, S)
        for row, waveform in zip(padded, waveforms, strict=True):
            row[: len(waveform)] = waveform
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device=loaded.device)
        return self._search(encode_batch(loaded.model, padded.to(loaded.device), lengths, dtype=self._dtype))


def transcribe(
    loaded: LoadedModel,
    source: Path | BinaryIO,
    *,
    name: str = "",
    decoding: DecodingConfig | None = None,
    segmentation: SegmentationConfig | None = None,
) -> Transcript:
    """Transcribes one audio file; arguments and errors as of `Transcriber`, which serves several files better."""
    return Transcriber(loaded, decoding=decoding, segmentation=segmentation)(source, name=name)
