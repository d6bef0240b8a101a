"""Text as it is spoken: passages of whole sentences, the pronunciations of their words, and their tokens."""

# K passages, L words of all, W different words

import logging
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr.data.phone_bank import spread
from asr.data.sentences import read_texts
from asr.pronunciation import Lexicon, PhoneEncoder
from asr.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_NUM_NAMED = 5  # words without a pronunciation that are named


@dataclass(frozen=True, slots=True)
class Lists:
    """Many short lists of integers in one array.

    Attributes:
        items: Of all lists, one behind the other.
        offsets: Where each begins, and the end of the last.
    """

    items: np.ndarray
    offsets: np.ndarray

    def pick(self, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items of chosen lists, one list behind the other, and the size of each."""
        sizes = self.offsets[lists + 1] - self.offsets[lists]
        return self.items[spread(self.offsets[lists], sizes)], sizes


def as_lists(lists: Sequence[Sequence[int]]) -> Lists:
    """Packs lists."""
    items = np.fromiter((item for each in lists for item in each), dtype=np.int64)
    return Lists(items, np.cumsum([0, *map(len, lists)]))


@dataclass(frozen=True, slots=True)
class Passages:
    """Stretches of running text.

    Attributes:
        words: Numbers of all words of the text, (L,) int32.
        bounds: The first word of each passage, and the one behind its last, (K, 2).
        phones: The usual pronunciation of each word by its number.
        tokens: The tokens of each word by its number.
    """

    words: np.ndarray
    bounds: np.ndarray
    phones: Lists
    tokens: Lists

    def __len__(self) -> int:
        return len(self.bounds)


def read_passages(
    paths: Sequence[Path],
    *,
    tokenizer: Tokenizer,
    lexicon: Lexicon,
    phones: Sequence[str],
    lengths: Sequence[int],
    max_words: int,
    seed: int,
) -> Passages:
    """Reads texts and cuts them into passages.

    A passage is of sentences that follow each other, at least as many words as an utterance that is drawn for it, so
    that passages are about as long as utterances; what is beyond `max_words` of one is left out. Passages with a word
    that cannot be spoken or written are left out, which is logged.

    Args:
        paths: Text files with a sentence a line (plain, .gz or .xz), and manifests (.jsonl), whose texts are taken.
        tokenizer: Writes each word with the same tokens wherever it stands, as byte-pair encoding of words does.
        lexicon: How words are spoken.
        phones: The phones that are known, numbered from 1 on.
        lengths: Words of utterances to draw from.
        max_words: Most words of a passage.
        seed: Of the draws.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read as text, the tokens of words depend on where they stand, or no passage is
            left.
    """
    numbers: dict[str, int] = {}
    stream, ends = array("i"), array("q")
    for text in read_texts(paths):
        stream.extend(numbers.setdefault(word, len(numbers)) for word in text.split())
        ends.append(len(stream))
    words = np.frombuffer(stream, dtype=np.intc) if stream else np.zeros(0, dtype=np.intc)
    _refuse_other_tokens(numbers, tokenizer)
    spoken, written, unusable = _tables(list(numbers), tokenizer, PhoneEncoder(lexicon, phones))
    bounds = _cut(ends, np.random.default_rng(seed).choice(lengths, size=len(ends)), max_words=max_words)
    bad = np.concatenate([[0], np.isin(words, unusable).cumsum()])
    usable = bad[bounds[:, 1]] == bad[bounds[:, 0]]
    if len(unusable):
        named = ", ".join(list(numbers)[number] for number in unusable[:_NUM_NAMED])
        logger.warning(
            "left out: %d of %d passages, with %d words that have no pronunciation in known phones, or no tokens: %s",
            (~usable).sum(), len(bounds), len(unusable), named,
        )  # fmt: skip
    if not usable.any():
        where = ", ".join(map(str, paths)) or "an empty list of texts"
        raise ValueError(
            f"there is no usable passage in {where}; give texts whose words are in the lexicon, or make one of theirs "
            "with recipes/make_lexicon.py"
        )
    return Passages(words, bounds[usable], spoken, written)


def _refuse_other_tokens(words: Iterable[str], tokenizer: Tokenizer) -> None:
    for word in words:
        try:
            once, twice = tokenizer.encode(word), tokenizer.encode(f"{word} {word}")
        except ValueError:
            continue  # such words are left out
        if twice != 2 * once:
            raise ValueError(
                f"the tokens of '{word} {word}' are not those of its words one by one, as those of letters are not; "
                "take pieces of words (byte-pair encoding): pieces=2000, or a language model that has them"
            )
        return


def _tables(words: list[str], tokenizer: Tokenizer, encoder: PhoneEncoder) -> tuple[Lists, Lists, np.ndarray]:
    """Phones and tokens of each word, and the numbers of those that lack one."""
    spoken: list[list[int]] = []
    written: list[list[int]] = []
    unusable = []
    for number, word in enumerate(words):
        try:
            own = encoder.encode(word), tokenizer.encode(word)
        except ValueError:
            own = [], []
            unusable.append(number)
        spoken.append(own[0])
        written.append(own[1])
    return as_lists(spoken), as_lists(written), np.array(unusable, dtype=np.int64)


def _cut(ends: Sequence[int], wanted: np.ndarray, *, max_words: int) -> np.ndarray:
    """Bounds of passages from where sentences end, and the fewest words of each, (K, 2)."""
    bounds: list[tuple[int, int]] = []
    start = 0
    for end in ends:
        if end - start >= wanted[len(bounds)]:
            bounds.append((start, min(end, start + max_words)))
            start = end
    if ends and ends[-1] > start:
        bounds.append((start, min(ends[-1], start + max_words)))
    return np.array(bounds, dtype=np.int64).reshape(-1, 2)
