"""Many utterances through a recogniser: batched by length, one encoder pass for any number of searches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from asr.checkpoint import LoadedModel
from asr.data.dataset import load_utterance
from asr.data.manifest import Utterance
from asr.decoding.arpa import load_ngram
from asr.decoding.hotwords import HotwordScorer, read_hotwords
from asr.decoding.scorers import Scorer
from asr.decoding.search import DecodingConfig, Encoding, Recognition, Search, encode
from asr.decoding.word_scorer import TokenNgramScorer, WordNgramScorer, fits_tokens
from asr.lm_checkpoint import load_language_model
from asr.nn.lm import LanguageModel
from asr.nn.model import Recognizer


class SearchBuilder:
    """Makes searches for one recogniser, and loads what they name once for all of them.

    Args:
        loaded: The recogniser.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._ngrams: dict[tuple[Path, float], Scorer[Any]] = {}
        self._neural: dict[Path, LanguageModel] = {}

    def build(self, config: DecodingConfig) -> Search:
        """A search as the config describes it.

        Raises:
            FileNotFoundError: If a language model or the file of hotwords is missing.
            ValueError: If one is broken or does not fit the recogniser.
        """
        lm, loaded = config.lm, self.loaded
        hotwords = None
        if config.hotwords is not None:
            phrases = read_hotwords(config.hotwords, bonus=config.hotword_bonus)
            hotwords = HotwordScorer(phrases, loaded.tokenizer, device=loaded.device)
        return Search(
            loaded.model,
            config,
            ngram=self._ngram(lm.ngram, lm.unknown_penalty) if lm.ngram else None,
            neural=self._language_model(lm.neural) if lm.neural else None,
            hotwords=hotwords,
        )

    def _ngram(self, path: Path, unknown_penalty: float) -> Scorer[Any]:
        key = (path, unknown_penalty)
        if key not in self._ngrams:
            model, tokenizer = load_ngram(path).to(self.loaded.device), self.loaded.tokenizer
            try:
                self._ngrams[key] = (
                    TokenNgramScorer(model, tokenizer)
                    if fits_tokens(model, tokenizer)
                    else WordNgramScorer(model, tokenizer, unknown_penalty=unknown_penalty)
                )
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        return self._ngrams[key]

    def _language_model(self, path: Path) -> LanguageModel:
        if path not in self._neural:
            loaded = load_language_model(path, device=self.loaded.device)
            loaded.check_tokens(self.loaded.tokenizer)
            self._neural[path] = loaded.model
        return self._neural[path]


def recognize_utterances(
    model: Recognizer,
    utterances: Sequence[Utterance],
    searches: Mapping[str, Callable[[Encoding], list[Recognition]]],
    *,
    sample_rate: int,
    max_batch_s: float = 120.0,
    progress: bool = False,
) -> Iterator[tuple[Utterance, dict[str, Recognition]]]:
    """Recognises the utterances of a manifest, the longest first, so that want of memory shows at once.

    Args:
        model: In eval mode, on its device.
        utterances: In any order.
        searches: Ways to search, by name; all start from the same encoder pass.
        sample_rate: Of the model, in Hz.
        max_batch_s: Most seconds of audio of a batch, padding included; a longer utterance goes alone.
        progress: Whether to show a progress bar on standard error.

    Yields:
        Each utterance with the result of each search, longest first.

    Raises:
        AudioError: If a file cannot be read.
    """
    for batch, encoding in encode_utterances(
        model, utterances, sample_rate=sample_rate, max_batch_s=max_batch_s, progress=progress
    ):
        found = {name: search(encoding) for name, search in searches.items()}
        for place, utterance in enumerate(batch):
            yield utterance, {name: each[place] for name, each in found.items()}


def encode_utterances(
    model: Recognizer,
    utterances: Sequence[Utterance],
    *,
    sample_rate: int,
    max_batch_s: float = 120.0,
    progress: bool = False,
) -> Iterator[tuple[list[Utterance], Encoding]]:
    """Runs the encoder on the utterances of a manifest; arguments and errors as of `recognize_utterances`.

    Yields:
        The utterances of each batch with their encoding, longest first.
    """
    device = next(model.parameters()).device
    with tqdm(
        total=len(utterances), desc="recognising", unit="utt", disable=None if progress else True, leave=False
    ) as bar:
        for batch in _batches(utterances, max_batch_s):
            waveforms = [load_utterance(utterance, sample_rate=sample_rate) for utterance in batch]
            lengths = torch.tensor([len(waveform) for waveform in waveforms])
            padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
            encoding = encode(model, padded.to(device), lengths.to(device))
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # else the first search would be charged for the encoder
            yield batch, encoding
            bar.update(len(batch))


def _batches(utterances: Sequence[Utterance], max_batch_s: float) -> list[list[Utterance]]:
    batches: list[list[Utterance]] = []
    for utterance in sorted(utterances, key=lambda each: (-each.duration_s, each.id)):
        if not batches or batches[-1][0].duration_s * (len(batches[-1]) + 1) > max_batch_s:
            batches.append([])
        batches[-1].append(utterance)
    return batches
