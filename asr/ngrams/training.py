"""The whole job of an n-gram model: texts to counts, to a Kneser-Ney model, pruned; and how well it predicts a text."""

# S ids of a text, R sentences that are scored at a time

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from asr.checkpoint import find_model, load_tokenizer_and_config
from asr.decoding.ngram import NgramModel, NgramTables
from asr.ngrams import kneser_ney, pruning
from asr.ngrams.counts import count_ngrams
from asr.ngrams.kneser_ney import Discounts
from asr.ngrams.texts import (
    BEGIN_ID,
    END_ID,
    UNKNOWN_ID,
    Speller,
    choose_vocabulary,
    encode_text,
    read_texts,
    spell_words,
    token_speller,
    token_vocabulary,
)
from asr.pronunciation import read_lexicon
from asr.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

UNITS = ("words", "tokens")
_ROWS = 512


@dataclass(slots=True, kw_only=True)
class NgramTrainingConfig:
    """What n-gram model to train.

    Attributes:
        order: Longest n-grams, at least 1.
        unit: `words`, or `tokens` of a model's tokenizer.
        model: The model folder or run folder of that tokenizer.
        vocab_size: Most words that the model knows, the most frequent ones; others become `<unk>`. None takes all.
        min_count: How often a word must come to be known.
        lexicon: A pronunciation lexicon whose words are known too, where the texts lack them: all are equally likely,
            with what smoothing leaves for new words. For texts that are few beside the words that may be said; not
            together with `vocab_size` or `min_count`.
        cutoffs: For orders 2, 3, …: n-grams that come at most so often are left out; the last serves all higher orders.
        prune: The largest relative increase of perplexity that leaving out one n-gram may cost; 0 prunes nothing.
        discount: One discount for all counts, in (0, 1]; None estimates three for each order.
    """

    order: int = 4
    unit: str = "words"
    model: Path | None = None
    vocab_size: int | None = None
    min_count: int = 1
    lexicon: Path | None = None
    cutoffs: list[int] = field(default_factory=list)
    prune: float = 0.0
    discount: float | None = None

    def __post_init__(self) -> None:
        for name in ("order", "min_count", "vocab_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}; choose one of {', '.join(UNITS)}")
        if (self.unit == "tokens") != (self.model is not None):
            raise ValueError(
                f"unit is {self.unit} and model is {self.model}; name a model for unit=tokens, and only then"
            )
        if self.unit == "tokens" and (self.vocab_size is not None or self.min_count > 1 or self.lexicon):
            raise ValueError(
                "the tokenizer decides the vocabulary of unit=tokens; leave out vocab_size, min_count and lexicon"
            )
        if self.lexicon and (self.vocab_size is not None or self.min_count > 1):
            raise ValueError(
                f"lexicon is {self.lexicon}, which adds words, while vocab_size and min_count leave words out; set one"
            )
        rising = [0, *self.cutoffs] == sorted([0, *self.cutoffs])
        if not rising or len(self.cutoffs) >= max(self.order, 2):
            raise ValueError(
                f"cutoffs are {self.cutoffs}; they are for orders 2 to {self.order}, not below 0, and must not fall"
            )
        if not 0 <= self.prune < math.inf:
            raise ValueError(f"prune is {self.prune}; it must be a number from 0 up, such as 1e-8")
        if self.discount is not None and not 0 < self.discount <= 1:
            raise ValueError(f"discount is {self.discount}; it must be in (0, 1], or null to estimate it")


@dataclass(slots=True, kw_only=True)
class TrainedNgrams:
    """A model and how it came about.

    Attributes:
        tables: The model.
        discounts: What was taken from the counts, one entry an order.
        num_sentences: Of the texts.
        num_words: Words or tokens of the texts, without sentence ends.
        num_unknown: Those that the vocabulary lacks.
    """

    tables: NgramTables
    discounts: list[Discounts]
    num_sentences: int
    num_words: int
    num_unknown: int


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        perplexity: Of known words and sentence ends; unknown words are contexts, but are not predicted.
        num_words: Words or tokens, without sentence ends.
        num_unknown: Those that the vocabulary lacks.
    """

    perplexity: float
    num_words: int
    num_unknown: int

    @property
    def unknown_rate(self) -> float:
        """Share of unknown words, in [0, 1]; 0 where there are no words."""
        return self.num_unknown / max(1, self.num_words)


def train(texts: Sequence[Path], config: NgramTrainingConfig) -> TrainedNgrams:
    """Trains an n-gram model.

    Args:
        texts: Text files or manifests, as `texts.read_texts` takes them.
        config: What model. Its order falls where no sentence is long enough for it.

    Raises:
        FileNotFoundError: If a text, the model or the lexicon is missing.
        ValueError: If a text or the lexicon is damaged, or there are no words.
    """
    tokenizer = _tokenizer(config)
    spell = _speller(tokenizer)
    spoken = _words_of(config.lexicon) if config.lexicon else []
    raw = read_texts(texts)
    if tokenizer:
        vocabulary = token_vocabulary(tokenizer)
    else:
        vocabulary = choose_vocabulary(raw, spell, size=config.vocab_size, min_count=config.min_count)
        vocabulary = list(dict.fromkeys([*vocabulary, *spoken]))
    corpus = encode_text(raw, spell, vocabulary)
    del raw  # memory is needed below
    logger.info("%d sentences, %d %s", corpus.num_sentences, corpus.num_words, config.unit)
    vocab_size = len(vocabulary)
    counts = count_ngrams(corpus.ids, vocab_size=vocab_size, order=config.order)
    logger.info("counted %s n-grams", " + ".join(str(len(table.keys)) for table in counts))
    levels, discounts = kneser_ney.estimate(
        counts, vocab_size=vocab_size, cutoffs=config.cutoffs, discount=config.discount
    )
    del counts
    if config.prune:
        levels = pruning.prune(levels, threshold=config.prune)
        logger.info("kept %s n-grams", " + ".join(str(len(level.words)) for level in levels))
    return TrainedNgrams(
        tables=kneser_ney.to_tables(levels, vocabulary),
        discounts=discounts,
        num_sentences=corpus.num_sentences,
        num_words=corpus.num_words,
        num_unknown=corpus.num_unknown,
    )


@torch.inference_mode()
def measure(model: NgramModel, texts: Sequence[Path], config: NgramTrainingConfig) -> Perplexity:
    """Measures the perplexity of texts by a model that was trained with this config.

    Raises:
        FileNotFoundError: If a text is missing.
        ValueError: If a text is damaged or empty.
    """
    corpus = encode_text(read_texts(texts), _speller(_tokenizer(config)), model.words)
    ends = np.flatnonzero(corpus.ids == END_ID)
    begins = np.flatnonzero(corpus.ids == BEGIN_ID)
    by_length = np.argsort(begins - ends, kind="stable")  # rows of a batch are about equally long
    total = 0.0
    for start in range(0, len(begins), _ROWS):
        rows = by_length[start : start + _ROWS]
        sentences = [torch.from_numpy(corpus.ids[begins[row] + 1 : ends[row] + 1]).long() for row in rows]
        words = torch.nn.utils.rnn.pad_sequence(sentences, batch_first=True, padding_value=UNKNOWN_ID)
        contexts = model.start(len(rows))
        for column in words.unbind(1):
            log_probs = model.score(contexts, column[:, None])[:, 0]
            total += float(log_probs[column != UNKNOWN_ID].double().sum())
            contexts = model.extend(contexts, column)
    predicted = corpus.num_words - corpus.num_unknown + corpus.num_sentences
    return Perplexity(math.exp(-total / predicted), corpus.num_words, corpus.num_unknown)


def check_output(path: Path) -> None:
    """Makes the folder of an output, so that hours of work do not end at a path that cannot be written.

    Raises:
        OSError: If the path is a folder, or its folder cannot be made or written to.
    """
    if path.is_dir():
        raise OSError(f"{path} is a folder; name the file to write, such as {path}/lm.arpa.gz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"{path.parent} cannot be made: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"{path.parent} is not writable; choose another output")


def _words_of(lexicon: Path) -> list[str]:
    """The words of a lexicon, sorted; those that texts spell as two, such as CO-OP, are two there and none here."""
    return sorted(word for word in read_lexicon(lexicon).pronunciations if " " not in word)


def _tokenizer(config: NgramTrainingConfig) -> Tokenizer | None:
    return load_tokenizer_and_config(find_model(config.model))[0] if config.model else None


def _speller(tokenizer: Tokenizer | None) -> Speller:
    return token_speller(tokenizer) if tokenizer else spell_words
