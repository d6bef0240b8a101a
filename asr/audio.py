"""Finding, reading, cutting and writing audio: everything becomes one channel of float32 samples at the asked rate.

libsndfile (through `soundfile`) decodes FLAC, WAV, Ogg Vorbis, Ogg Opus and MP3 without any system package. Whatever
is wrong with a file is an `AudioError` of one line: the file, what is wrong with it, and what to do.
"""

import math
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from asr import mp3
from asr.resampling import resample as resample
from asr.resampling import resample_blocks

# S samples

AUDIO_SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".mp3")
STANDARD_INPUT = Path("-")

_READ_S = 60.0
# Lossy decoders carry state from packet to packet, and libsndfile misplaces a seek into the last page of an Ogg file:
# before a part, this much is decoded and thrown away. Ten seconds cost about 15 ms.
_PREROLL_S = 10.0
_LOSSY_SUBTYPES = ("VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
# Manifests hold rounded times, so an end may lie this far behind the last sample.
_END_TOLERANCE_S = 0.01
# Audio is cut where it is quietest: means over 200 ms, looked at every 20 ms.
_QUIET_WINDOW_S, _QUIET_STEP_S = 0.2, 0.02
# What is left behind a cut is at least this long where the limits allow it: a word on its own is recognised badly.
_SHORTEST_REST_S = 1.0


class AudioError(ValueError):
    """Audio that cannot be used. The message is one line that names the file, the fault and the way out."""


@dataclass(frozen=True, slots=True)
class Source:
    """An audio file; `relative` is its path below the folder in which it was found, without its ending."""

    path: Path
    relative: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """What a file says of itself.

    Attributes:
        sample_rate: Hz.
        num_channels: at least 1.
        num_samples: per channel, at least 1.
    """

    sample_rate: int
    num_channels: int
    num_samples: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate


@dataclass(slots=True, kw_only=True)
class SegmentationConfig:
    """How long audio is cut into segments that are recognised on their own.

    Attributes:
        max_segment_s: Audio up to this long stays in one piece.
        min_segment_s: Longer audio is cut at its quietest place between this and `max_segment_s`, again and again.
        max_batch_s: Most seconds of segments that are recognised together.
    """

    max_segment_s: float = 16.0
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


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """Lists the files that paths mean: files themselves, and all audio in folders, at any depth, sorted.

    Args:
        paths: files and folders; `-` is standard input.

    Raises:
        ValueError: a folder holds no audio.
    """
    sources: list[Source] = []
    for path in paths:
        if path == STANDARD_INPUT:
            sources.append(Source(path, Path("stdin")))
            continue
        if not path.is_dir():
            sources.append(Source(path, Path(path.stem)))
            continue
        found = (file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
        files = sorted(file for file in found if not file.is_dir())
        if not files:
            raise ValueError(f"{path}: no audio in this folder; expected files of {' '.join(AUDIO_SUFFIXES)}")
        sources += [Source(file, file.relative_to(path).with_suffix("")) for file in files]
    return sources


def probe(path: Path | BinaryIO) -> AudioInfo:
    """Rate, channels and length of a file, from its header.

    The length is exact for every format; an MP3's frames are counted, since its header may be missing or wrong.

    Args:
        path: a file or an open binary stream, as for `load`.

    Raises:
        AudioError: as `load`, except that samples are not looked at.
    """
    with _open(path) as (audio, name):
        if audio.frames == 0:
            raise AudioError(f"{name}: holds no samples; record it again")
        return AudioInfo(sample_rate=audio.samplerate, num_channels=audio.channels, num_samples=audio.frames)


def load(path: Path | BinaryIO, *, sample_rate: int, start_s: float = 0.0, end_s: float | None = None) -> Tensor:
    """Read a file, or the part of it between two times, as one channel.

    Args:
        path: a file, or an open binary stream such as `sys.stdin.buffer`. A stream that can seek is read from its
            start, one that cannot (a pipe) is first copied to a temporary file.
        sample_rate: Hz of the result; the audio is resampled where its own rate differs.
        start_s: first time to read, in seconds from the start of the file.
        end_s: last time to read; None reads to the end. Up to 10 ms behind the file's end is read as its end.

    Returns:
        (S,) float32, the mean over the channels, nominally in [-1, 1]. S is ceil(n * sample_rate / own rate) for n
        samples read. A part has the samples of the whole, but for the resampling filter's reach at its two ends.

    Raises:
        AudioError: the file is missing, a directory, unreadable, empty, not audio, damaged, without samples, or holds
            NaN or infinite samples; or the part lies outside the file.
    """
    with _open(path) as (audio, name):
        start, stop = _span(audio, name, start_s, end_s)
        blocks = list(_read_blocks(audio, name, start=start, stop=stop))
        if not blocks:
            raise AudioError(f"{name}: holds no samples{f' after {start_s:g} s' if start else ''}; record it again")
        waveform = torch.from_numpy(blocks[0] if len(blocks) == 1 else np.concatenate(blocks))  # (S,)
        return resample(waveform, from_rate=audio.samplerate, to_rate=sample_rate)


def stream(
    path: Path | BinaryIO, *, sample_rate: int, block_s: float = 30.0, name: str = ""
) -> Generator[Tensor, None, None]:
    """Read audio of any length in blocks and in bounded memory; concatenated they are what `load` returns, to 1e-6.

    Args:
        path: a file or an open binary stream, as for `load`.
        sample_rate: Hz of the result.
        block_s: length of a block in seconds, at least 0.1. All blocks but the last have the same length, which
            resampling may round by a fraction of a second.
        name: what messages call the audio; by default the path, or what the stream calls itself.

    Yields:
        (S,) float32, never empty.

    Raises:
        AudioError: as `load`, at the first block or at the block where the fault lies.
        ValueError: `block_s` is under 0.1.
    """
    if not block_s >= 0.1:
        raise ValueError(f"block_s is {block_s}, but a block must be at least 0.1 s long")
    with _open(path, name) as (audio, name):
        # Whole steps of the resampling filter, so that it finds the same phases in every block.
        unit = audio.samplerate // math.gcd(audio.samplerate, sample_rate)
        block_size = max(1, round(block_s * audio.samplerate / unit)) * unit
        blocks = _read_blocks(audio, name, block_size=block_size)
        is_empty = True
        for block in resample_blocks(blocks, from_rate=audio.samplerate, to_rate=sample_rate):
            is_empty = False
            yield block
        if is_empty:
            raise AudioError(f"{name}: holds no samples; record it again")


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
            # Copies: a view would keep all of `held` in memory for as long as the segment waits.
            yield held[:cut].clone()
            held = held[cut:]
    if len(held):
        yield held


def _quietest(waveform: Tensor, sample_rate: int) -> int:
    """The middle of the quietest window of a waveform, in samples."""
    window, step = min(int(_QUIET_WINDOW_S * sample_rate), len(waveform)), int(_QUIET_STEP_S * sample_rate)
    energies = waveform.square().unfold(0, window, step).mean(dim=1)
    return int(energies.argmin()) * step + window // 2


def source_name(source: Path | BinaryIO) -> str:
    """What messages call a source: the path as given, or what a stream calls itself."""
    return str(source if isinstance(source, str | Path) else getattr(source, "name", "audio stream"))


@contextmanager
def seekable(source: Path | BinaryIO, *, name: str = "") -> Iterator[Path | BinaryIO]:
    """What the decoders can read, who need to seek: a stream that cannot (a pipe) is copied to a temporary file.

    Args:
        source: a file or an open binary stream.
        name: what messages call it; by default what the stream calls itself.

    Yields:
        The source itself wherever possible.

    Raises:
        AudioError: there is no room for the copy.
    """
    if isinstance(source, str | Path) or source.seekable():
        yield source
        return
    # On disk, not in memory: the audio may be long.
    with tempfile.TemporaryFile() as spool:
        try:
            shutil.copyfileobj(source, spool)
        except OSError as error:
            name = name or source_name(source)
            raise AudioError(f"{name}: cannot be copied to a temporary file ({_reason(error)})") from error
        spool.seek(0)
        yield spool


def save(path: Path, waveform: Tensor, *, sample_rate: int) -> None:
    """Write one channel as 16-bit FLAC or WAV, by the suffix of the path. Samples beyond [-1, 1) are clipped.

    What `load` read from a 16-bit file is written back exactly.

    Args:
        path: ends in `.flac` or `.wav`; its folder must exist.
        waveform: (S,) floating point.
        sample_rate: Hz.

    Raises:
        AudioError: another suffix, a shape other than (S,), NaN or infinite samples, or a path that cannot be written.
    """
    if path.suffix.lower() not in (".flac", ".wav"):
        raise AudioError(f"{path}: writing {path.suffix or 'without a suffix'} is not supported; use .flac or .wav")
    if waveform.ndim != 1:
        raise AudioError(f"{path}: a waveform of shape (S,) is expected, got {tuple(waveform.shape)}")
    if not bool(torch.isfinite(waveform).all()):
        raise AudioError(f"{path}: the waveform holds NaN or infinite samples")
    # libsndfile would write x * 32767 but reads x / 32768; scaling here keeps 16-bit audio as it is.
    samples = (waveform.detach().cpu().float() * 32768).round().clamp(-32768, 32767).to(torch.int16)
    try:
        soundfile.write(path, samples.numpy(), sample_rate, subtype="PCM_16")
    except (OSError, RuntimeError) as error:
        raise AudioError(
            f"{path}: cannot be written ({_reason(error)}); check the folder and the free space"
        ) from error


class _Decoder(soundfile.SoundFile):
    """A decoder that leaves its position alone between reads.

    `SoundFile` seeks after every read of a file that can seek. For lossy formats that is no no-op: it costs the decoder
    its state, and near the end of an Ogg Opus file it gives wrong samples.
    """

    def seekable(self) -> bool:
        """False, which only keeps the base class from seeking on its own; `seek` works as always."""
        return False


@contextmanager
def _open(source: Path | BinaryIO, name: str = "") -> Iterator[tuple[soundfile.SoundFile, str]]:
    """An open decoder for a path or a stream, with the name that messages use."""
    with ExitStack() as stack:
        name = name or source_name(source)
        file = stack.enter_context(seekable(source, name=name))
        if isinstance(file, str | Path):
            path = Path(file)
            if path.is_dir():
                raise AudioError(f"{name}: is a directory, not an audio file; name a file in it")
            try:
                file = stack.enter_context(path.open("rb"))
            except OSError as error:
                raise AudioError(f"{name}: cannot be opened ({_reason(error)}); check the path") from error
        if file.seek(0, 2) == 0:
            raise AudioError(f"{name}: is empty (0 bytes); fetch or record it again")
        file.seek(0)
        try:
            audio = stack.enter_context(_Decoder(mp3.with_true_length(file)))
        except (OSError, RuntimeError, TypeError) as error:
            raise AudioError(
                f"{name}: is not audio that can be read ({_reason(error)}); expected FLAC, WAV, Ogg Vorbis, Ogg Opus "
                "or MP3, so convert it to one of these"
            ) from error
        yield audio, name


def _read_blocks(
    audio: soundfile.SoundFile, name: str, *, block_size: int | None = None, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    """Mono blocks of the samples from `start` to `stop`: (S,) float32, none empty, all but the last `block_size`."""
    block_size = block_size or round(_READ_S * audio.samplerate)
    stop = audio.frames if stop is None else min(stop, audio.frames)
    skip = min(start, round(_PREROLL_S * audio.samplerate)) if audio.subtype in _LOSSY_SUBTYPES else 0
    position = start - skip
    try:
        if position > 0:
            audio.seek(position)
        if skip > 0:
            position += len(audio.read(skip, dtype="float32", always_2d=True))
        while position < stop:
            wanted = min(block_size, stop - position)
            samples = audio.read(wanted, dtype="float32", always_2d=True)  # (S, channels)
            if len(samples) == 0:
                return
            mono = samples[:, 0] if audio.channels == 1 else samples.mean(axis=1)
            finite = np.isfinite(mono)
            if not finite.all():
                place_s = (position + int(np.argmin(finite))) / audio.samplerate
                raise AudioError(f"{name}: holds a NaN or infinite sample at {place_s:.3f} s; convert it again")
            yield mono
            position += len(mono)
            if len(mono) < wanted:
                return
    except (OSError, RuntimeError) as error:
        raise AudioError(
            f"{name}: is damaged or cut short after {position / audio.samplerate:.2f} s ({_reason(error)}); "
            "fetch or convert it again"
        ) from error


def _span(audio: soundfile.SoundFile, name: str, start_s: float, end_s: float | None) -> tuple[int, int | None]:
    """First and one-past-last sample of the part between two times; None is the end of the file."""
    duration_s = audio.frames / audio.samplerate
    if not start_s >= 0 or (audio.frames > 0 and start_s >= duration_s):
        raise AudioError(f"{name}: start_s {start_s:g} lies outside the file's 0 to {duration_s:.3f} s")
    if end_s is None:
        return round(start_s * audio.samplerate), None
    if not end_s > start_s:
        raise AudioError(f"{name}: end_s {end_s:g} must lie behind start_s {start_s:g}")
    if end_s > duration_s + _END_TOLERANCE_S:
        raise AudioError(f"{name}: end_s {end_s:g} lies outside the file's 0 to {duration_s:.3f} s")
    return round(start_s * audio.samplerate), round(end_s * audio.samplerate)


def _reason(error: Exception) -> str:
    """The core of a library's message, without the path and the closing point."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, soundfile.LibsndfileError):
        return error.error_string.rstrip(".").lower().removeprefix("error : ")
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
