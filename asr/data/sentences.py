"""Text for language models: files of sentences, read, normalised and packed as token ids."""

# K sentences, U tokens of one

import logging
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from tqdm import tqdm

from asr.data.text_files import read_lines
from asr.text import normalize
from asr.tokenizer import BpeTokenizer, Tokenizer

logger = logging.getLogger(__name__)

_NUM_NAMED = 5  # unusable sentences that are named


@dataclass(slots=True, kw_only=True)
class SentenceLoaderConfig:
    """How sentences become batches.

    Attributes:
        max_batch_tokens: Most tokens of a batch, padding and ends of sentence included.
        max_sentence_tokens: Sentences of more tokens, the end included, are unusable.
        unusable: What to do with sentences that are too long or have characters that the tokenizer lacks: `stop` with
            the place of the first ones, or `leave_out` and say how many.
        num_workers: Processes that make batches ahead of training, for a GPU; 0 makes them in the training process.
    """

    max_batch_tokens: int = 8192
    max_sentence_tokens: int = 512
    unusable: str = "leave_out"
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"loader.num_workers is {self.num_workers}; it must not be negative")
        if self.unusable not in ("stop", "leave_out"):
            raise ValueError(f"loader.unusable is {self.unusable!r}; choose stop or leave_out")
        if not 1 < self.max_sentence_tokens <= self.max_batch_tokens:
            raise ValueError(
                f"loader.max_sentence_tokens {self.max_sentence_tokens} and loader.max_batch_tokens "
                f"{self.max_batch_tokens}: the first must be at least 2 and at most the second"
            )


@dataclass(frozen=True, slots=True)
class Sentences:
    """Many sentences in little memory: two bytes a token where the vocabulary allows.

    Attributes:
        tokens: The token ids of all, one sentence behind the other, without ends; uint16 or int32.
        offsets: Where each begins, and the end of the last, (K + 1,) int64.
        num_words: Words of each, (K,) int32.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    num_words: np.ndarray

    def __len__(self) -> int:
        return len(self.num_words)

    def __getitem__(self, index: int) -> np.ndarray:
        """The token ids of one sentence, (U,)."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, without the end, (K,) int64."""
        return np.diff(self.offsets)

    def where(self, chosen: np.ndarray) -> Self:
        """The sentences that are marked, booleans (K,)."""
        offsets = np.concatenate([[0], self.lengths[chosen].cumsum()])
        return type(self)(self.tokens[np.repeat(chosen, self.lengths)], offsets, self.num_words[chosen])

    def held_out(self, number: int, *, seed: int) -> tuple[Self, Self]:
        """Splits off some sentences, drawn by the seed.

        Returns:
            The others, and those held out; both in their order.

        Raises:
            ValueError: If fewer would remain than are held out.
        """
        if not 0 < number <= len(self) // 2:
            raise ValueError(
                f"holdout_sentences is {number}, but there are {len(self)} sentences; hold out at least one and at "
                "most half, or name texts in valid"
            )
        held = np.zeros(len(self), dtype=bool)
        held[np.random.default_rng(seed).choice(len(self), size=number, replace=False)] = True
        return self.where(~held), self.where(held)


def read_texts(paths: Sequence[Path], *, progress: bool = True) -> Iterator[str]:
    """The normalised sentences of texts and manifests, as `read_sentences` takes them, one by one.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read as text.
    """
    for _, _, text in _read_lines(paths, progress=progress):
        yield text


def learn_pieces(paths: Sequence[Path], *, pieces: int) -> BpeTokenizer:
    """A tokenizer of so many pieces of words, learned from texts and manifests.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read as text, or these texts do not allow that number.
    """
    texts = list(read_texts(paths))
    try:
        return BpeTokenizer.train(texts, vocab_size=pieces)
    except ValueError as error:
        raise ValueError(f"pieces is {pieces}: {error}") from None


def _read_lines(paths: Sequence[Path], *, progress: bool) -> Iterator[tuple[Path, str, str]]:
    """File, place and normalised text of every sentence."""
    lines = ((path, where, text) for path in paths for where, text in read_lines(path))
    for path, where, text in tqdm(
        lines, "reading text", unit=" sentences", disable=None if progress else True, leave=False
    ):
        yield path, where, normalize_quickly(text)


def read_sentences(
    paths: Sequence[Path], tokenizer: Tokenizer, config: SentenceLoaderConfig, *, progress: bool = True
) -> Sentences:
    """Reads texts and turns them into tokens; what is left out is counted in the log, and the first are named.

    Args:
        paths: Text files with a sentence a line (plain, .gz or .xz), and manifests (.jsonl), whose texts are taken.
        tokenizer: Turns them into tokens.
        config: What is unusable, and what becomes of it.
        progress: Whether to show a progress bar.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read as text, the policy is to stop and a sentence is unusable, or none is left.
    """
    tokens, lengths, num_words = array("H" if tokenizer.vocab_size <= 2**16 else "i"), array("i"), array("i")
    unusable: list[str] = []  # the first ones
    num_unusable = 0
    for path, where, text in _read_lines(paths, progress=progress):
        own, fault = _encode(text, tokenizer, config)
        if fault is not None:
            num_unusable += 1
            if num_unusable <= _NUM_NAMED:
                unusable.append(f"{path}:{where} {fault}")
        if own:
            tokens.extend(own)
            lengths.append(len(own))
            num_words.append(len(text.split()))
    if num_unusable:
        _report(unusable, num_unusable, len(lengths) + num_unusable, config)
    if not lengths:
        where = ", ".join(map(str, paths)) or "an empty list of texts"
        raise ValueError(f"there is no usable sentence in {where}; give text files or manifests with some")
    offsets = np.concatenate([[0], np.frombuffer(lengths, dtype=np.intc).cumsum(dtype=np.int64)])
    return Sentences(
        np.frombuffer(tokens, dtype=tokens.typecode), offsets, np.frombuffer(num_words, dtype=np.intc).astype(np.int32)
    )


def _encode(text: str, tokenizer: Tokenizer, config: SentenceLoaderConfig) -> tuple[list[int], str | None]:
    """Token ids, or none and what is wrong with the sentence; neither for a line without words."""
    try:
        own = tokenizer.encode(text)
    except ValueError as error:
        return [], str(error).split(";")[0]
    if len(own) + 1 > config.max_sentence_tokens:
        return [], f"has {len(own) + 1} tokens, more than loader.max_sentence_tokens {config.max_sentence_tokens}"
    return own, None


def _report(named: list[str], num_unusable: int, total: int, config: SentenceLoaderConfig) -> None:
    more = f"; and {num_unusable - len(named)} more" if num_unusable > len(named) else ""
    message = f"{num_unusable} of {total} sentences are unusable: {'; '.join(named)}{more}"
    if config.unusable == "stop":
        raise ValueError(f"{message}; mend them, or set loader.unusable=leave_out")
    logger.warning("left out: %s", message)


_SIMPLE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz' \n")
_LOOSE_APOSTROPHE = re.compile("'(?![A-Za-z])")


def normalize_quickly(text: str) -> str:
    """`normalize`, twenty times as fast where there is nothing but Latin letters and apostrophes before them."""
    if _SIMPLE.issuperset(text) and not ("'" in text and _LOOSE_APOSTROPHE.search(text)):
        return " ".join(text.lower().split())
    return normalize(text)
