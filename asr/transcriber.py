"""Audio of any length to transcripts, in bounded memory: read ahead, packed across files, searched in batches."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from asr import audio
from asr.audio import SegmentationConfig, segment_stream
from asr.checkpoint import LoadedModel
from asr.decoding.search import DecodingConfig, NotFiniteError, Recognition
from asr.devices import pick_dtype
from asr.garbage import MemoryReturns
from asr.recognition import SearchBuilder, encode_batch, pack, read_ahead
from asr.transcript import Segment, Transcript, make_segment, make_transcript
from asr.variants import TunedSearch, with_weights

# S samples

# Audio that waits for a batch, in batches: the more there is to choose from, the less padding, and the more memory.
_BATCHES_AHEAD = 4
# Segments that are cut and wait to be looked at.
_SEGMENTS_AHEAD = 8


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
    """Quarters of a second, so that shapes recur: kernels are prepared for each, and odd sizes split the memory up."""
    quarter = sample_rate // 4
    return -(-num_samples // quarter) * quarter


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
        precision: As for `asr.devices.pick_dtype`.
        builder: Makes the search; one that is shared loads a language model once for all.

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
        builder: SearchBuilder | None = None,
    ) -> None:
        self._tuned = tuned or TunedSearch()
        self._loaded = loaded
        self._segmentation = segmentation or SegmentationConfig()
        self._dtype = pick_dtype(precision, device=loaded.device)
        builder = builder or SearchBuilder(loaded)
        self._search = builder.build(with_weights(decoding or DecodingConfig(), self._tuned.weights))

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
        give_back = MemoryReturns()
        bench = _Workbench(max_batch_s=self._segmentation.max_batch_s, sample_rate=self._loaded.sample_rate)
        with closing(read_ahead(self._read(inputs), num_ahead=_SEGMENTS_AHEAD)) as entries:
            for entry in entries:
                bench.put(entry)
                yield from self._work(bench, on_progress, give_back, until=lambda: not bench.is_full())
        yield from self._work(bench, on_progress, give_back, until=bench.is_empty)

    def _work(
        self,
        bench: _Workbench,
        on_progress: Callable[[float], None] | None,
        give_back: Callable[[], None],
        *,
        until: Callable[[], bool],
    ) -> Iterator[Outcome]:
        """Recognises batches, and yields what is finished."""
        rate = self._loaded.sample_rate
        yield from (recording.outcome(sample_rate=rate) for recording in bench.take_finished())
        while not until():
            batch = bench.take_batch()
            self._recognize(batch)
            give_back()
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
