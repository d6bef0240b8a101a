"""Training speech as a recogniser hears it: phones of known words, and how it takes them for others."""

# B utterances, T' encoder frames, P phones

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torchaudio.functional
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from tqdm import tqdm

from asr.augment import AugmentConfig, SpecAugment
from asr.checkpoint import LoadedModel
from asr.data.batching import BucketSampler
from asr.data.dataset import UtteranceDataset, preload, stable_seed
from asr.data.manifest import Utterance
from asr.data.phone_bank import SILENCE, HeardUtterance
from asr.devices import pick_dtype
from asr.pronunciation import PhoneEncoder
from asr.tokenizer import BLANK_ID

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class HearingConfig:
    """How training speech is heard. What was heard in training has fewer faults than anything new would have, so it is
    made harder to hear, until as many phones are wrong as of speech that is new.

    Attributes:
        times: How often all of it is heard, each time with other draws.
        dropout: Whether the recogniser's dropout is on.
        augment: What is done to waveforms and features.
        max_batch_s: Most seconds of audio of a batch, padding included; a longer utterance goes alone.
    """

    times: int = 4
    dropout: bool = True
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    max_batch_s: float = 160.0

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"hearing.times is {self.times}; it must be at least 1")
        if self.augment.pause_probability:
            raise ValueError(
                f"hearing.augment.pause_probability is {self.augment.pause_probability}, but what is heard is heard "
                "without pauses; set it to 0"
            )


@dataclass(frozen=True, slots=True)
class Heard:
    """What was heard, and the share of its phones that are wrong (edit distance to the usual pronunciations)."""

    utterances: list[HeardUtterance]
    phone_error_rate: float


@torch.inference_mode()
def hear(
    loaded: LoadedModel,
    utterances: Sequence[Utterance],
    encoder: PhoneEncoder,
    config: HearingConfig,
    *,
    seed: int,
    max_gb: float = 4.0,
    progress: bool = True,
) -> Heard:
    """Hears utterances, and finds where in them each phone is.

    Args:
        loaded: The recogniser, which must know phones.
        utterances: With their transcripts; none is empty.
        encoder: Of words to phones, the recogniser's.
        config: How they are heard.
        seed: Of all draws.
        max_gb: Most memory for their audio, which is read once then and not every time.
        progress: Whether to show a progress bar.

    Raises:
        AudioError: If a file cannot be read.
        ValueError: If a word has no pronunciation.
    """
    dataset = UtteranceDataset(
        utterances,
        tokenizer=loaded.tokenizer,
        sample_rate=loaded.sample_rate,
        augment=config.augment,
        seed=seed,
        cache=preload(utterances, sample_rate=loaded.sample_rate, max_gb=max_gb, progress=progress),
        phone_encoder=encoder,
    )
    sampler = BucketSampler(
        [each.duration_s for each in utterances],
        # One that is longer goes alone.
        max_batch_s=max(config.max_batch_s, max(each.duration_s for each in utterances) / min(config.augment.speeds)),
        max_batch_size=len(utterances),
        speeds=config.augment.speeds,
        seed=seed,
    )
    mask = SpecAugment(config.augment.spec, frame_s=loaded.config.features.frame_s)
    ends = [_word_ends(each.text, encoder) for each in utterances]
    found: list[HeardUtterance] = []
    num_wrong = num_phones = num_lost = num_heard = 0
    plans = [plan for hearing in range(config.times) for plan in sampler.epoch(hearing)]
    for plan in tqdm(plans, "hearing", unit=" batches", disable=None if progress else True, leave=False):
        batch = dataset[plan].to(loaded.device)
        assert batch.phones is not None and batch.phone_lengths is not None
        generator = torch.Generator().manual_seed(batch.seed)
        torch.manual_seed(stable_seed(seed, "dropout", plan.epoch, plan.position))
        log_probs, lengths = _listen(loaded, batch.waveforms, batch.lengths, mask, generator, dropout=config.dropout)
        for row, draw in enumerate(plan.draws):
            phones = batch.phones[row, : batch.phone_lengths[row]].tolist()
            own = log_probs[row, : lengths[row]].cpu()
            num_wrong += phone_errors(own, phones)
            num_phones += len(phones)
            num_heard += 1
            starts = phone_starts(own, phones)
            if starts is None:
                num_lost += 1
                continue
            found.append(
                HeardUtterance(
                    probabilities=own.exp().half(),
                    phones=[SILENCE, *phones],
                    starts=[0, *starts],
                    ends_word=[False, *ends[draw.index]],
                    index=draw.index,
                    hearing=plan.epoch,
                )
            )
    if num_lost:
        logger.warning("left out: %d of %d utterances as heard, with fewer frames than phones", num_lost, num_heard)
    return Heard(found, num_wrong / max(1, num_phones))


def _listen(
    loaded: LoadedModel,
    waveforms: Tensor,
    lengths: Tensor,
    mask: SpecAugment,
    generator: torch.Generator,
    *,
    dropout: bool,
) -> tuple[Tensor, Tensor]:
    """CTC log-probabilities of phones, (B, T', 1 + P), and lengths, with masks and dropout."""
    model = loaded.model
    dtype = pick_dtype("auto", device=loaded.device)
    features, lengths = model.features(waveforms, lengths)
    features = mask.train()(features, lengths, generator=generator)
    model.train(dropout)
    try:
        with torch.autocast(loaded.device.type, dtype=dtype, enabled=dtype != torch.float32):
            encoded = model.encoder(features, lengths)
    finally:
        model.eval()
    return model.phone_log_probs(encoded.frames.float()), encoded.lengths


def phone_errors(log_probs: Tensor, phones: Sequence[int]) -> int:
    """The edit distance from phones to the likeliest ones of every frame, (T', 1 + P), joined and without blanks."""
    heard = log_probs.argmax(dim=1).unique_consecutive()
    distance: int = Levenshtein.distance(list(phones), heard[heard != BLANK_ID].tolist())
    return distance


def phone_starts(log_probs: Tensor, phones: Sequence[int]) -> list[int] | None:
    """The first frame of each phone in the likeliest alignment, None where there are too few frames.

    Args:
        log_probs: (T', 1 + P) float32, on the processor.
        phones: At least one.
    """
    repeated = sum(first == second for first, second in pairwise(phones))
    if len(phones) + repeated > len(log_probs):
        return None
    targets = torch.tensor([phones], dtype=torch.int32)
    path, _ = torchaudio.functional.forced_align(log_probs[None], targets, blank=BLANK_ID)
    labels = path[0]
    before = torch.nn.functional.pad(labels, (1, 0))[:-1]
    starts: list[int] = ((labels != BLANK_ID) & (labels != before)).nonzero()[:, 0].tolist()
    return starts


def _word_ends(text: str, encoder: PhoneEncoder) -> list[bool]:
    """Whether each phone of a text is the last of its word."""
    sizes = [len(encoder.encode(word)) for word in text.split()]
    return [place == size - 1 for size in sizes for place in range(size)]
