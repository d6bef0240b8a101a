"""Utterances as batches of tensors: read, cached, augmented, padded."""

# B utterances, S samples, U tokens

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from tqdm import tqdm

from asr import audio
from asr.augment import AugmentConfig, WaveAugment, speed
from asr.data.batching import BatchPlan, Draw
from asr.data.manifest import Utterance
from asr.data.tensor_batch import TensorBatch
from asr.losses import min_ctc_frames
from asr.pronunciation import PhoneEncoder
from asr.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class LoaderConfig:
    """How utterances become batches.

    Attributes:
        max_batch_s: Most seconds of audio of a batch, padding included.
        max_batch_size: Most utterances of a batch.
        padding_step_s: Above 0, batches are padded to a multiple of this many seconds, and of 64 tokens with the start:
            a GPU, which prepares itself for every new shape, then sees few of them. 0 pads to the longest utterance.
        min_duration_s: Utterances shorter than this are unusable.
        max_duration_s: Utterances longer than this are unusable.
        unusable: What to do with utterances that are too short, too long, or have more tokens than CTC can put into
            their frames: `stop` with their names, or `leave_out` of training and say how many.
        cache_gb: The decoded audio is held in memory if it takes at most this many gigabytes (16 bits a sample); where
            several processes of a machine train together, in all of them.
        num_workers: Processes that read and augment ahead of training; 0 does it in the training process.
    """

    max_batch_s: float = 120.0
    max_batch_size: int = 256
    padding_step_s: float = 0.0
    min_duration_s: float = 0.1
    max_duration_s: float = 40.0
    unusable: str = "stop"
    cache_gb: float = 4.0
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.unusable not in ("stop", "leave_out"):
            raise ValueError(f"loader.unusable is {self.unusable!r}; choose stop or leave_out")
        if not 0 < self.min_duration_s < self.max_duration_s:
            raise ValueError(
                f"loader.min_duration_s {self.min_duration_s:g} and loader.max_duration_s {self.max_duration_s:g}: "
                "the first must be above 0 and below the second"
            )
        if self.max_batch_s <= 0 or self.max_batch_size < 1:
            raise ValueError(
                f"loader.max_batch_s {self.max_batch_s:g} and max_batch_size {self.max_batch_size} must be positive"
            )
        if self.padding_step_s < 0:
            raise ValueError(f"loader.padding_step_s is {self.padding_step_s:g}; it must not be negative")
        if self.num_workers < 0 or self.cache_gb < 0:
            raise ValueError(
                f"loader.num_workers {self.num_workers} and loader.cache_gb {self.cache_gb:g} must not be negative"
            )


@dataclass(slots=True, kw_only=True)
class Batch(TensorBatch):
    """A batch of utterances.

    Attributes:
        waveforms: (B, S) float32, zero beyond a length.
        lengths: Samples, (B,) int64.
        tokens: (B, U) int64, zero beyond a length.
        token_lengths: (B,) int64.
        num_tokens: Sum of `token_lengths`.
        ids: Names of the utterances.
        seed: Seed of what is drawn for this batch on the model's side.
        phones: (B, U') int64, zero beyond a length; None where the dataset has no lexicon.
        phone_lengths: (B,) int64, likewise.
    """

    waveforms: Tensor
    lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    num_tokens: int
    ids: list[str]
    seed: int
    phones: Tensor | None = None
    phone_lengths: Tensor | None = None
    row_limit: ClassVar[str] = "max_duration_s"

    @property
    def padded_length(self) -> int:
        """Samples S that every row has with its padding."""
        return self.waveforms.shape[1]


class UtteranceDataset(Dataset[Batch]):
    """Makes the batches that a plan asks for; the same plan gives the same batch.

    Args:
        utterances: What plans count from 0.
        tokenizer: Turns their texts into tokens.
        sample_rate: Of the waveforms, in Hz.
        augment: Noise and reverberation, or None for the audio as it is. Speed is in the plan, and how long pauses are,
            which need it.
        seed: Decides with epoch and utterance all that is drawn.
        cache: Waveforms in memory, from `preload`, or None to read files every time.
        padding_step_s: As of `LoaderConfig`.
        phone_encoder: Turns their texts into phones; None for batches without.

    Raises:
        ValueError: If a text has a character that the tokenizer lacks, or a word that the lexicon lacks; the utterance
            is named.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        *,
        tokenizer: Tokenizer,
        sample_rate: int,
        augment: AugmentConfig | None,
        seed: int,
        cache: list[Tensor] | None = None,
        padding_step_s: float = 0.0,
        phone_encoder: PhoneEncoder | None = None,
    ) -> None:
        self.utterances = list(utterances)
        self.tokens = encode_all(self.utterances, tokenizer)
        self.phones = None if phone_encoder is None else encode_all(self.utterances, phone_encoder)
        self.sample_rate = sample_rate
        self.augment = None if augment is None else WaveAugment(augment, sample_rate=sample_rate)
        self.seed = seed
        self.cache = cache
        self.padding_step = round(padding_step_s * sample_rate)
        self.token_step = _TOKEN_STEP if self.padding_step else 0

    def __getitem__(self, plan: BatchPlan) -> Batch:
        with _one_thread():
            waveforms = [self._waveform(draw, plan.epoch) for draw in plan.draws]
        tokens, token_lengths = self._padded([self.tokens[draw.index] for draw in plan.draws])
        phones, phone_lengths = None, None
        if self.phones is not None:
            # Few lengths of tokens and few of phones would be many pairs; phones are fewer nearly always.
            at_least = tokens.shape[1] if self.token_step else 0
            phones, phone_lengths = self._padded([self.phones[draw.index] for draw in plan.draws], at_least=at_least)
        padded = pad_sequence(waveforms, batch_first=True)
        return Batch(
            waveforms=_padded_to(padded, self.padding_step),
            lengths=torch.tensor([len(waveform) for waveform in waveforms]),
            tokens=tokens,
            token_lengths=token_lengths,
            num_tokens=int(token_lengths.sum()),
            ids=[self.utterances[draw.index].id for draw in plan.draws],
            # The first shard draws what a single process draws, the others something else.
            seed=stable_seed(self.seed, "batch", plan.epoch, plan.position, *([plan.shard] if plan.shard else [])),
            phones=phones,
            phone_lengths=phone_lengths,
        )

    def _padded(self, rows: Sequence[list[int]], *, at_least: int = 0) -> tuple[Tensor, Tensor]:
        """Labels (B, U), zero beyond a length, and the lengths (B,)."""
        padded = pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True)
        padded = torch.nn.functional.pad(padded, (0, max(0, at_least - padded.shape[1])))
        return _padded_to(padded, self.token_step, beside=1), torch.tensor([len(row) for row in rows])

    def _waveform(self, draw: Draw, epoch: int) -> Tensor:
        if self.cache is None:
            waveform = load_utterance(self.utterances[draw.index], sample_rate=self.sample_rate)
        else:
            waveform = self.cache[draw.index].float() / _INT16_SCALE
        if draw.speed != 1.0:
            waveform = speed(waveform, draw.speed)
        if self.augment is not None:
            generator = torch.Generator().manual_seed(stable_seed(self.seed, "utterance", epoch, draw.index))
            waveform = self.augment(waveform, pause_s=draw.pause_s, generator=generator)
        return waveform


_INT16_SCALE = 32768.0
# Where audio is padded to a multiple of a step, tokens are too: along with the start token to a multiple of this.
_TOKEN_STEP = 64


def _padded_to(rows: Tensor, step: int, *, beside: int = 0) -> Tensor:
    """Pads (B, N) with zeros until N and what comes beside it are a multiple of the step; 0 leaves it as it is."""
    missing = -(rows.shape[1] + beside) % step if step else 0
    return torch.nn.functional.pad(rows, (0, missing))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Computes with one thread, as workers do: on some processors the last digits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_utterance(utterance: Utterance, *, sample_rate: int) -> Tensor:
    """Reads the waveform of an utterance, (S,) float32.

    Raises:
        AudioError: If it cannot be read; file and reason are named.
    """
    return audio.load(utterance.audio, sample_rate=sample_rate, start_s=utterance.start_s or 0.0, end_s=utterance.end_s)


def encode_all(utterances: Sequence[Utterance], encoder: Tokenizer | PhoneEncoder) -> list[list[int]]:
    """Token or phone ids of every text.

    Raises:
        ValueError: If a text has a character that the tokenizer lacks, or a word that the lexicon lacks; the utterance
            is named.
    """
    encoded = []
    for utterance in utterances:
        try:
            encoded.append(encoder.encode(utterance.text))
        except ValueError as error:
            raise ValueError(f"utterance {utterance.id}: {error}") from None
    return encoded


def preload(
    utterances: Sequence[Utterance], *, sample_rate: int, max_gb: float, progress: bool = True
) -> list[Tensor] | None:
    """Decodes all audio into memory, 16 bits a sample, if it fits. Workers that are forked share it as it is.

    Returns:
        One int16 tensor (S,) an utterance, or None if they would take more than `max_gb` gigabytes.
    """
    estimate_gb = sum(utterance.duration_s for utterance in utterances) * sample_rate * 2 / 1e9
    if estimate_gb > max_gb:
        logger.info("audio is read from disk, memory would take %.1f GB (loader.cache_gb %g)", estimate_gb, max_gb)
        return None

    def read(utterance: Utterance) -> Tensor:
        waveform = load_utterance(utterance, sample_rate=sample_rate)
        return (waveform * _INT16_SCALE).round().clamp(-_INT16_SCALE, _INT16_SCALE - 1).to(torch.int16)

    # Decoders release Python's lock, so threads suffice.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = pool.map(read, utterances)
        hidden = None if progress else True
        waveforms = list(tqdm(reading, "reading audio", len(utterances), unit="file", disable=hidden, leave=False))
    size_gb = sum(waveform.nbytes for waveform in waveforms) / 1e9
    logger.info("all audio is in memory, %.2f of at most %g GB (loader.cache_gb)", size_gb, max_gb)
    return waveforms


@dataclass(frozen=True, slots=True)
class Unusable:
    """An utterance that cannot be trained on, and why."""

    id: str
    reason: str


def find_unusable(
    utterances: Sequence[Utterance],
    tokens: Sequence[list[int]],
    config: LoaderConfig,
    *,
    num_frames: Callable[[float], int],
    fastest: float,
    phones: Sequence[list[int]] | None = None,
) -> list[Unusable]:
    """Finds, before training, what would fail or mislead it.

    Args:
        utterances: From the manifest.
        tokens: Their token ids.
        config: Limits of duration.
        num_frames: Encoder frames for a duration in seconds.
        fastest: The highest speed at which an utterance is played.
        phones: Their phones, which CTC has to put into the frames too; None without.
    """
    found = []
    for utterance, own, spoken in zip(utterances, tokens, phones or [[]] * len(tokens), strict=True):
        duration_s, needed = utterance.duration_s, max(min_ctc_frames(own), min_ctc_frames(spoken))
        frames = num_frames(duration_s / fastest)
        if duration_s < config.min_duration_s:
            found.append(Unusable(utterance.id, f"lasts {duration_s:g} s, less than {config.min_duration_s:g} s"))
        elif duration_s > config.max_duration_s:
            found.append(Unusable(utterance.id, f"lasts {duration_s:g} s, more than {config.max_duration_s:g} s"))
        elif frames < needed:
            labels = f"{len(own)} tokens" + (f" and {len(spoken)} phones" if spoken else "")
            found.append(Unusable(utterance.id, f"has {frames} frames for {labels}, CTC needs {needed}"))
    return found


def usable_utterances(
    utterances: Sequence[Utterance],
    tokenizer: Tokenizer,
    config: LoaderConfig,
    *,
    num_frames: Callable[[float], int],
    fastest: float,
    phone_encoder: PhoneEncoder | None = None,
) -> list[Utterance]:
    """The utterances to train on, by the policy `config.unusable`; what is left out is named in the log.

    Raises:
        ValueError: If the policy is to stop and an utterance is unusable, or if none is left.
    """
    tokens = encode_all(utterances, tokenizer)
    phones = None if phone_encoder is None else encode_all(utterances, phone_encoder)
    unusable = find_unusable(utterances, tokens, config, num_frames=num_frames, fastest=fastest, phones=phones)
    if not unusable:
        return list(utterances)
    named = "; ".join(f"{each.id} {each.reason}" for each in unusable[:5])
    more = f"; and {len(unusable) - 5} more" if len(unusable) > 5 else ""
    message = f"{len(unusable)} of {len(utterances)} training utterances are unusable: {named}{more}"
    if config.unusable == "stop":
        raise ValueError(f"{message}; mend them, or set loader.unusable=leave_out")
    logger.warning("left out: %s", message)
    for each in unusable[5:]:
        logger.info("left out: %s %s", each.id, each.reason)
    left_out = {each.id for each in unusable}
    kept = [utterance for utterance in utterances if utterance.id not in left_out]
    if not kept:
        raise ValueError(f"no training utterance is left: {named}{more}")
    return kept


def stable_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that follows from its parts alone, on any machine and in any process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int(np.frombuffer(digest, dtype="<u8")[0] >> 1)
