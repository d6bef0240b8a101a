"""Many utterances through a recogniser: batched by length, results as they come."""

from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm

from asr.data.dataset import load_utterance
from asr.data.manifest import Utterance
from asr.decoding.search import DecodingConfig, Recognition, recognize
from asr.nn.model import Recognizer


def recognize_utterances(
    model: Recognizer,
    utterances: Sequence[Utterance],
    config: DecodingConfig,
    *,
    sample_rate: int,
    max_batch_s: float = 120.0,
    progress: bool = False,
) -> Iterator[tuple[Utterance, Recognition]]:
    """Recognises the utterances of a manifest, the longest first, so that want of memory shows at once.

    Args:
        model: In eval mode, on its device.
        utterances: In any order.
        config: How to search.
        sample_rate: Of the model, in Hz.
        max_batch_s: Most seconds of audio of a batch, padding included; a longer utterance goes alone.
        progress: Whether to show a progress bar on standard error.

    Yields:
        Each utterance with its result, longest first.

    Raises:
        AudioError: If a file cannot be read.
    """
    device = next(model.parameters()).device
    with tqdm(
        total=len(utterances), desc="recognising", unit="utt", disable=None if progress else True, leave=False
    ) as bar:
        for batch in _batches(utterances, max_batch_s):
            waveforms = [load_utterance(utterance, sample_rate=sample_rate) for utterance in batch]
            lengths = torch.tensor([len(waveform) for waveform in waveforms])
            padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
            found = recognize(model, padded.to(device), lengths.to(device), config)
            yield from zip(batch, found, strict=True)
            bar.update(len(batch))


def _batches(utterances: Sequence[Utterance], max_batch_s: float) -> list[list[Utterance]]:
    batches: list[list[Utterance]] = []
    for utterance in sorted(utterances, key=lambda each: (-each.duration_s, each.id)):
        if not batches or batches[-1][0].duration_s * (len(batches[-1]) + 1) > max_batch_s:
            batches.append([])
        batches[-1].append(utterance)
    return batches
