"""Many utterances through a recogniser: read ahead, batched by length, one encoder pass for any number of searches."""

# B utterances, S samples

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from asr.checkpoint import LoadedModel
from asr.confidence import WordEvidence, word_evidence
from asr.data.dataset import load_utterance
from asr.data.manifest import Utterance
from asr.decoding.arpa import load_ngram
from asr.decoding.hotwords import HotwordScorer, WordHotwords, check_phrases, read_hotwords
from asr.decoding.hypothesis import align
from asr.decoding.lexicon_graph import LexiconGraph
from asr.decoding.neural_lm import NeuralLmScorer, SentenceScorer
from asr.decoding.scorers import Scorer
from asr.decoding.search import LEXICON_NEEDS, TOKEN_LM_MODES, DecodingConfig, Encoding, Recognition, Search, encode
from asr.decoding.spell import PhoneSpeller
from asr.decoding.spelling import fits_tokens
from asr.decoding.word_scorer import TokenNgramScorer, WordNgramScorer
from asr.devices import pick_dtype
from asr.garbage import without_collections
from asr.lm_checkpoint import LoadedLanguageModel, load_language_model
from asr.nn.model import Recognizer
from asr.pronunciation import Lexicon, Pronunciation, read_lexicon
from asr.speller_checkpoint import load_speller
from asr.tokenizer import Tokenizer

Item = TypeVar("Item")

# Batches of a manifest that are decoded while one is recognised.
_BATCHES_AHEAD = 2
_LANGUAGE = "en-us"  # of hotwords, where nothing is said of it
# A reader that hangs, in a dead network drive say, must not keep Ctrl-C from working.
_LONGEST_WAIT_S = 2.0


class SearchBuilder:
    """Makes searches for one recogniser, and loads what they name once for all of them.

    Args:
        loaded: The recogniser.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._ngrams: dict[tuple[Path, float], Scorer[Any]] = {}
        self._neural: dict[Path, LoadedLanguageModel] = {}
        self._spellers: dict[Path, PhoneSpeller] = {}
        self._lexicons: dict[tuple[Path, Path], LexiconGraph] = {}
        # With hotwords, the last alone: each has a language model of its own in memory.
        self._with_hotwords: tuple[Any, LexiconGraph] | None = None

    def build(self, config: DecodingConfig) -> Search:
        """A search as the config describes it.

        Raises:
            FileNotFoundError: If a language model, the lexicon, the speller or the file of hotwords is missing.
            ValueError: If one is broken or does not fit the recogniser.
        """
        lm, loaded = config.lm, self.loaded
        phrases = read_hotwords(config.hotwords, bonus=config.hotword_bonus) if config.hotwords is not None else {}
        lexicon = word_hotwords = hotwords = None
        if phrases and config.lexicon:
            check_phrases(phrases, loaded.tokenizer)
            # What is to be avoided need not be made possible.
            words = tuple(sorted({word for phrase, bonus in phrases.items() if bonus > 0 for word in phrase.split()}))
            lexicon = self._expecting(config, words)
            word_hotwords = WordHotwords(phrases, loaded.tokenizer, lexicon)
        elif phrases:
            hotwords = HotwordScorer(phrases, loaded.tokenizer, device=loaded.device)
        elif lm.ngram and config.lexicon:
            lexicon = self._lexicon(lm.ngram, config.lexicon)
        return Search(
            loaded.model,
            config,
            ngram=self._ngram(lm.ngram, lm.unknown_penalty) if lm.ngram and config.mode != "lexicon" else None,
            neural=self._tokens(lm.neural) if lm.neural and config.mode in TOKEN_LM_MODES else None,
            sentences=self._sentences(lm.neural) if lm.neural and config.mode not in TOKEN_LM_MODES else None,
            hotwords=hotwords,
            lexicon=lexicon,
            word_hotwords=word_hotwords,
            speller=self._speller(config.speller) if config.speller else None,
        )

    def _expecting(self, config: DecodingConfig, words: tuple[str, ...]) -> LexiconGraph:
        if config.lm.ngram is None or config.lexicon is None:
            raise ValueError(LEXICON_NEEDS)
        language = config.hotword_language or _LANGUAGE
        key = (config.lm.ngram, config.lexicon, words, language)
        if self._with_hotwords is None or self._with_hotwords[0] != key:
            self._with_hotwords = None  # makes room before
            self._with_hotwords = key, self._load_lexicon(*key)
        return self._with_hotwords[1]

    def _lexicon(self, ngram: Path, lexicon: Path) -> LexiconGraph:
        key = (ngram, lexicon)
        if key not in self._lexicons:
            self._lexicons[key] = self._load_lexicon(ngram, lexicon)
        return self._lexicons[key]

    def _load_lexicon(
        self, ngram: Path, lexicon: Path, words: Sequence[str] = (), language: str = _LANGUAGE
    ) -> LexiconGraph:
        """Also of words that neither may have."""
        if not self.loaded.config.phones:
            raise ValueError(
                f"{self.loaded.path}: this model knows no phones, so decoding.mode 'lexicon' is not for it; "
                "use another, or train it with lexicon=… and loss.phone_weight above 0"
            )
        with without_collections():
            return self._read_lexicon(ngram, lexicon, words, language)

    def _read_lexicon(self, ngram: Path, lexicon: Path, words: Sequence[str], language: str) -> LexiconGraph:
        loaded = self.loaded
        with ThreadPoolExecutor(1) as thread:  # which mostly decompresses, and that leaves Python's lock alone
            loading = thread.submit(load_ngram, ngram)
            pronunciations = read_lexicon(lexicon)
            model = loading.result().to(loaded.device)
        expected = _spoken(words, pronunciations, loaded.config.phones, language=language)
        try:
            return LexiconGraph(model, pronunciations, loaded.config.phones, loaded.tokenizer, expected=expected)
        except ValueError as error:
            raise ValueError(f"{lexicon} with {ngram}: {error}") from None

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

    def _tokens(self, path: Path) -> NeuralLmScorer:
        loaded = self._language_model(path)
        loaded.check_tokens(self.loaded.tokenizer)
        return NeuralLmScorer(loaded.model)

    def _sentences(self, path: Path) -> SentenceScorer:
        loaded = self._language_model(path)
        try:
            return SentenceScorer(loaded.model, loaded.tokenizer, self.loaded.tokenizer)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _speller(self, path: Path) -> PhoneSpeller:
        if path not in self._spellers:
            loaded = load_speller(path, device=self.loaded.device)
            loaded.check_phones(self.loaded.config.phones)
            try:
                self._spellers[path] = PhoneSpeller(loaded.model, loaded.tokenizer, self.loaded.tokenizer)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        return self._spellers[path]

    def _language_model(self, path: Path) -> LoadedLanguageModel:
        if path not in self._neural:
            self._neural[path] = load_language_model(path, device=self.loaded.device)
        return self._neural[path]


def _spoken(
    words: Sequence[str], lexicon: Lexicon, phones: Sequence[str], *, language: str
) -> dict[str, list[Pronunciation]]:
    """The pronunciations of hotwords in phones that a recogniser knows; those that a lexicon lacks, by rule.

    Raises:
        ValueError: If there is none of a word.
    """
    inventory = set(phones)
    known = lexicon.pronunciations
    found = {word: list(known[word]) for word in words if word in known}
    if missing := [word for word in words if word not in found]:
        from asr.data.lexicons import espeak_lexicon  # with what few need

        named = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        try:
            rules = espeak_lexicon(missing, language=language).pronunciations
            found |= {word: list(own) for word, own in rules.items()}
        except (OSError, ValueError) as error:
            raise ValueError(
                f"hotwords that the lexicon lacks have no pronunciation by rule ({error}): {named}; leave them out, or "
                "take decoding prefix_beam or joint"
            ) from None
    for word in words:
        if word not in found:
            raise ValueError(f"hotword {word!r} is not in the lexicon, and espeak-ng says nothing of it; leave it out")
        own = [each for each in found[word] if inventory.issuperset(each)]
        if not own:
            raise ValueError(
                f"hotword {word!r} is spoken as {' '.join(found[word][0])!r}, in phones that the model does not know; "
                "leave it out, or take decoding prefix_beam or joint"
            )
        found[word] = own
    return found


@torch.inference_mode()
def encode_batch(model: Recognizer, waveforms: Tensor, lengths: Tensor, *, dtype: torch.dtype) -> Encoding:
    """As `asr.decoding.search.encode`, with the encoder's matrix products in a type of choice.

    Args:
        model: In eval mode.
        waveforms: (B, S) of the model's sample rate, on the model's device.
        lengths: (B,) integers, in samples.
        dtype: From `asr.devices.pick_dtype`.

    Returns:
        Frames and log-probabilities in float32, whatever the type.

    Raises:
        ValueError: If the model is in training mode.
        NotFiniteError: If the model's output is not a number.
    """
    if dtype == torch.float32:
        return encode(model, waveforms, lengths)
    with torch.autocast(waveforms.device.type, dtype=dtype):
        encoding = encode(model, waveforms, lengths)
    # The CTC head once more, outside of autocast, which rounds its logits to 8 bits.
    frames = encoding.frames.float()
    return replace(encoding, frames=frames, log_probs=model.ctc_log_probs(frames))


def pack(items: Sequence[Item], *, length: Callable[[Item], float], most: float) -> list[list[Item]]:
    """Groups items of like length into batches.

    Args:
        items: In any order; those of equal length stay in it.
        length: Of an item, at least 0.
        most: Most that the longest item of a batch times their number may be; a longer item goes alone.

    Returns:
        Batches, and the items in each, longest first.
    """
    batches: list[list[Item]] = []
    for item in sorted(items, key=length, reverse=True):
        if not batches or length(batches[-1][0]) * (len(batches[-1]) + 1) > most:
            batches.append([])
        batches[-1].append(item)
    return batches


@dataclass(frozen=True, slots=True)
class _End:
    """Stands behind the last item; `fault` is what ended the iteration before its time."""

    fault: BaseException | None


def read_ahead(items: Generator[Item, None, None], *, num_ahead: int) -> Generator[Item, None, None]:
    """Goes through a generator in a thread of its own, so that reading and computing overlap.

    Decoders and large tensor operations release Python's lock. The thread ends with the iteration, also where that is
    broken off, by an exception or by closing what is returned; the generator is closed then.

    Args:
        items: What takes time to get. It runs in the other thread alone.
        num_ahead: Most items that wait to be taken, at least 1.

    Yields:
        The items in order. What getting one raises is raised here in its place.
    """
    ready: SimpleQueue[Item | _End] = SimpleQueue()
    places = threading.Semaphore(num_ahead - 1)
    is_over = threading.Event()

    def work() -> None:
        fault: BaseException | None = None
        try:
            with closing(items):
                for item in items:
                    ready.put(item)
                    del item  # else it would live until the next one is there
                    places.acquire()
                    if is_over.is_set():
                        return
        except BaseException as error:  # raised again where the items are taken
            fault = error
        ready.put(_End(fault))

    thread = threading.Thread(target=work, name="read_ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(entry := ready.get(), _End):
            places.release()
            yield entry
            del entry
        if entry.fault is not None:
            raise entry.fault
    finally:
        is_over.set()
        places.release()
        thread.join(_LONGEST_WAIT_S)


def recognize_utterances(
    model: Recognizer,
    utterances: Sequence[Utterance],
    searches: Mapping[str, Callable[[Encoding], list[Recognition]]],
    *,
    sample_rate: int,
    max_batch_s: float = 120.0,
    precision: str = "float32",
    progress: bool = False,
) -> Iterator[tuple[Utterance, dict[str, Recognition]]]:
    """Recognises the utterances of a manifest, the longest first, so that want of memory shows at once.

    Args:
        model: In eval mode, on its device.
        utterances: In any order.
        searches: Ways to search, by name; all start from the same encoder pass.
        sample_rate: Of the model, in Hz.
        max_batch_s: Most seconds of audio of a batch, padding included; a longer utterance goes alone.
        precision: As for `asr.devices.pick_dtype`.
        progress: Whether to show a progress bar on standard error.

    Yields:
        Each utterance with the result of each search, longest first.

    Raises:
        AudioError: If a file cannot be read.
        ValueError: If there is no such precision.
    """
    for batch, encoding in encode_utterances(
        model,
        utterances,
        sample_rate=sample_rate,
        max_batch_s=max_batch_s,
        precision=precision,
        progress=progress,
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
    precision: str = "float32",
    progress: bool = False,
) -> Iterator[tuple[list[Utterance], Encoding]]:
    """Runs the encoder on the utterances of a manifest; arguments and errors as of `recognize_utterances`.

    Yields:
        The utterances of each batch with their encoding, longest first.
    """
    device = next(model.parameters()).device
    dtype = pick_dtype(precision, device=device)
    batches = pack(sorted(utterances, key=lambda each: each.id), length=lambda each: each.duration_s, most=max_batch_s)
    with (
        tqdm(
            total=len(utterances), desc="recognising", unit="utt", disable=None if progress else True, leave=False
        ) as bar,
        closing(read_ahead(_load_batches(batches, sample_rate), num_ahead=_BATCHES_AHEAD)) as loaded,
    ):
        for batch, waveforms, lengths in loaded:
            encoding = encode_batch(model, waveforms.to(device), lengths.to(device), dtype=dtype)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # else the first search would be charged for the encoder
            yield batch, encoding
            bar.update(len(batch))


def _load_batches(
    batches: Sequence[list[Utterance]], sample_rate: int
) -> Generator[tuple[list[Utterance], Tensor, Tensor], None, None]:
    """Utterances with their waveforms (B, S), padded with zeros, and lengths in samples (B,)."""
    for batch in batches:
        waveforms = [load_utterance(utterance, sample_rate=sample_rate) for utterance in batch]
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        yield batch, torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths


@dataclass(frozen=True, slots=True)
class Heard:
    """What was recognised in one utterance, and what speaks for each word of it."""

    text: str
    evidence: list[WordEvidence]


def hear(recognition: Recognition, tokenizer: Tokenizer) -> Heard:
    """The best hypothesis as text, with the evidence for its words."""
    tokens = recognition.best.tokens
    spans = align(recognition.log_probs, tokens)
    return Heard(tokenizer.decode(tokens), word_evidence(recognition.hypotheses, spans, tokenizer))
