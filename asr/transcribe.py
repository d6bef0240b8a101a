"""Audio files of any length to transcripts, in bounded memory."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from asr import audio
from asr.checkpoint import LoadedModel
from asr.decoding.search import DecodingConfig, NotFiniteError, encode
from asr.errors import one_line
from asr.recognition import SearchBuilder
from asr.transcript import Segment, Transcript, make_segment, make_transcript
from asr.variants import TunedSearch, with_weights
from asr.writers import FORMATS

STANDARD_INPUT = Path("-")

# Audio is cut where it is quietest: means over 200 ms, looked at every 20 ms.
_QUIET_WINDOW_S, _QUIET_STEP_S = 0.2, 0.02
# What is left behind a cut is at least this long where the limits allow it: a word on its own is recognised badly.
_SHORTEST_REST_S = 1.0


@dataclass(slots=True, kw_only=True)
class SegmentationConfig:
    """How long audio is cut into segments that are recognised on their own.

    Attributes:
        max_segment_s: Audio up to this long stays in one piece.
        min_segment_s: Longer audio is cut at its quietest place between this and `max_segment_s`, again and again.
        max_batch_s: Most seconds of segments that are recognised together.
    """

    max_segment_s: float = 24.0
    min_segment_s: float = 10.0
    max_batch_s: float = 100.0

    def __post_init__(self) -> None:
        if not self.max_batch_s > 0:
            raise ValueError(f"max_batch_s is {self.max_batch_s:g}; it must be above 0")
        if not 1 <= self.min_segment_s < self.max_segment_s:
            raise ValueError(
                f"min_segment_s {self.min_segment_s:g} and max_segment_s {self.max_segment_s:g}: the first must be "
                "at least 1 and below the second"
            )


@dataclass(frozen=True, slots=True)
class Source:
    """A file to transcribe; `relative` is where its transcript goes under the output folder, without its ending."""

    path: Path
    relative: Path


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """Lists the files that paths mean: files themselves, and all audio in folders, at any depth, sorted.

    Raises:
        ValueError: If a folder holds no audio.
    """
    sources: list[Source] = []
    for path in paths:
        if path == STANDARD_INPUT:
            sources.append(Source(path, Path("stdin")))
            continue
        if not path.is_dir():
            sources.append(Source(path, Path(path.stem)))
            continue
        found = (file for file in path.rglob("*") if file.suffix.lower() in audio.AUDIO_SUFFIXES)
        files = sorted(file for file in found if not file.is_dir())
        if not files:
            raise ValueError(f"{path}: no audio in this folder; expected files of {' '.join(audio.AUDIO_SUFFIXES)}")
        sources += [Source(file, file.relative_to(path).with_suffix("")) for file in files]
    return sources


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
        progress: Whether to show a progress bar for several files, and a summary.

    Returns:
        The files that could not be transcribed.

    Raises:
        ValueError: If there is no such format, nothing to transcribe, the output folder is a file, or several files
            without one cannot follow each other in this format.
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
    transcriber = Transcriber(loaded, decoding=decoding, tuned=tuned, segmentation=segmentation)
    failures: list[Path] = []
    audio_s, started = 0.0, time.perf_counter()
    show = progress and len(sources) > 1
    # None hides the bar where standard error is no terminal: a log has lines only.
    for source in tqdm(sources, "transcribing", unit="file", disable=None if show else True, leave=False):
        stream = sys.stdin.buffer if source.path == STANDARD_INPUT else source.path
        try:
            transcript = transcriber(stream, name=str(source.path))
        except (audio.AudioError, OSError) as error:
            tqdm.write(f"error: {one_line(error)}", file=sys.stderr)
            failures.append(source.path)
            continue
        audio_s += transcript.duration_s
        _deliver(write(transcript), source, FORMATS[format].suffix, output_dir)
    if progress and output_dir is not None:
        speed = audio_s / (time.perf_counter() - started)
        done = len(sources) - len(failures)
        print(
            f"{done} of {len(sources)} files, {audio_s / 60:.1f} minutes, {speed:.0f} times real time; {output_dir}",
            file=sys.stderr,
        )
    return failures


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


class Transcriber:
    """Turns audio of any length into transcripts, in bounded memory; made once, used for any number of files.

    Args:
        loaded: The recogniser.
        decoding: How to search; greedy by default.
        tuned: Weights and calibration for this way to search.
        segmentation: How to cut long audio.

    Raises:
        FileNotFoundError: If a language model or the file of hotwords is missing.
        ValueError: If the search does not fit the recogniser.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        decoding: DecodingConfig | None = None,
        tuned: TunedSearch | None = None,
        segmentation: SegmentationConfig | None = None,
    ) -> None:
        self._tuned = tuned or TunedSearch()
        self._loaded = loaded
        self._segmentation = segmentation or SegmentationConfig()
        self._search = SearchBuilder(loaded).build(with_weights(decoding or DecodingConfig(), self._tuned.weights))

    def __call__(self, source: Path | BinaryIO, *, name: str = "") -> Transcript:
        """Transcribes one audio file, or an open stream of one.

        Args:
            source: Any audio that soundfile reads, of any rate, length and number of channels.
            name: What the transcript calls it; by default the path as given.

        Raises:
            AudioError: If it cannot be read, or the model's answer to it is not a number; file and reason are named.
        """
        name, rate = name or str(source), self._loaded.sample_rate
        segments: list[Segment] = []
        end_s = 0.0
        pieces = segment_stream(audio.stream(source, sample_rate=rate), sample_rate=rate, config=self._segmentation)
        for batch in _group(pieces, max_samples=int(self._segmentation.max_batch_s * rate)):
            try:
                segments += self._recognize(batch, start_s=end_s)
            except NotFiniteError as error:
                raise audio.AudioError(f"{name}: {error}") from error
            end_s += sum(len(piece) for piece in batch) / rate
        return make_transcript(name, duration_s=end_s, segments=segments)

    def _recognize(self, pieces: list[Tensor], *, start_s: float) -> list[Segment]:
        """The segments of consecutive waveforms (S,)."""
        loaded = self._loaded
        waveforms = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True).to(loaded.device)
        lengths = torch.tensor([len(piece) for piece in pieces], device=loaded.device)
        segments = []
        for piece, found in zip(pieces, self._search(encode(loaded.model, waveforms, lengths)), strict=True):
            end_s = start_s + len(piece) / loaded.sample_rate
            segments.append(
                make_segment(
                    found,
                    loaded.tokenizer,
                    start_s=start_s,
                    end_s=end_s,
                    frame_s=loaded.frame_s,
                    calibration=self._tuned.calibration,
                )
            )
            start_s = end_s
        return segments


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


def segment_stream(blocks: Iterable[Tensor], *, sample_rate: int, config: SegmentationConfig) -> Iterator[Tensor]:
    """Cuts a stream of audio into segments that follow each other without gap or overlap.

    Args:
        blocks: Consecutive pieces of one waveform, (S,) each, of any length.
        sample_rate: In Hz.
        config: How long segments may be.

    Yields:
        Waveforms (S,), at most `max_segment_s` long.
    """
    longest, shortest = int(config.max_segment_s * sample_rate), int(config.min_segment_s * sample_rate)
    rest = min(int(_SHORTEST_REST_S * sample_rate), (longest - shortest) // 8)
    held = torch.zeros(0)
    for block in blocks:
        held = torch.cat([held, block])
        while len(held) > longest:
            cut = shortest + _quietest(held[shortest : longest - rest], sample_rate)
            yield held[:cut]
            held = held[cut:]
    if len(held):
        yield held


def _quietest(waveform: Tensor, sample_rate: int) -> int:
    """The middle of the quietest window of a waveform, in samples."""
    window, step = min(int(_QUIET_WINDOW_S * sample_rate), len(waveform)), int(_QUIET_STEP_S * sample_rate)
    energies = waveform.square().unfold(0, window, step).mean(dim=1)
    return int(energies.argmin()) * step + window // 2


def _group(pieces: Iterator[Tensor], *, max_samples: int) -> Iterator[list[Tensor]]:
    """Groups consecutive segments into batches of limited size, padding included."""
    batch: list[Tensor] = []
    for piece in pieces:
        longest = max(len(each) for each in [*batch, piece])
        if batch and longest * (len(batch) + 1) > max_samples:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch
