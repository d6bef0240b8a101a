"""Text files and manifests to word ids, the form that n-grams are counted in.

Twenty million words must not cost twenty million calls of the normaliser. A text is read as pieces between white space,
every distinct piece is normalised and spelled in units once, and the rest is arithmetic on arrays.
"""

# P distinct pieces, S ids of a text, marks included, V vocabulary

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.data.text_files import read_lines
from asr.decoding.ngram import SENTENCE_END, SENTENCE_START, UNKNOWN
from asr.text import normalize
from asr.tokenizer import SPECIAL_TOKENS, Tokenizer

MARKS = (UNKNOWN, SENTENCE_START, SENTENCE_END)
UNKNOWN_ID, BEGIN_ID, END_ID = range(3)
SPACE = "\u2581"  # how the token of a bare space is written: an ARPA word cannot be white space

_LINE_END = 0  # the piece that stands for the end of a line
_CHUNK = 1 << 22  # pieces that are spelled at a time

# (a piece of text without white space) -> its units; none if normalisation leaves nothing of it
Speller = Callable[[str], list[str]]


@dataclass(slots=True)
class RawText:
    """A text before normalisation.

    Attributes:
        pieces: The distinct pieces between white space; the first is the end of a line.
        stream: The text as places in `pieces`, int32; it begins and ends with an end of line.
    """

    pieces: list[str]
    stream: NDArray[np.int32]


@dataclass(slots=True)
class Corpus:
    """A text in ids.

    Attributes:
        ids: `<s> … </s> <s> … </s>` of all sentences, (S,) int32.
        vocabulary: The word of every id; `<unk>`, `<s>` and `</s>` have the ids 0, 1 and 2.
        num_sentences: Sentences; lines of which normalisation leaves nothing are none.
        num_words: Words or tokens without marks, unknown ones included.
        num_unknown: Those that the vocabulary lacks.
    """

    ids: NDArray[np.int32]
    vocabulary: list[str]
    num_sentences: int
    num_words: int
    num_unknown: int


def read_texts(paths: Sequence[Path]) -> RawText:
    """Reads texts one after the other: one sentence a line (plain, .gz or .xz), or a manifest's transcripts (.jsonl).

    Raises:
        FileNotFoundError: If one is missing; all are looked for before any is read.
        ValueError: If one is damaged or not UTF-8.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such text; expected a text file (.gz and .xz too) or a manifest .jsonl"
            )
    places: defaultdict[str, int] = defaultdict(count().__next__)
    stream = array("i", [places["\n"]])
    for path in paths:
        for _, line in read_lines(path):
            stream.extend(map(places.__getitem__, line.split()))
            stream.append(_LINE_END)
    return RawText(list(places), np.frombuffer(stream, dtype=np.int32))


def spell_words(piece: str) -> list[str]:
    """The normalised words of a piece; `well-known` is two. Words are normalised one by one, so pieces may be."""
    return normalize(piece).split()


def token_speller(tokenizer: Tokenizer) -> Speller:
    """How a tokenizer spells a piece. A word that it has no characters for is `<unk>`.

    A tokenizer with a token for the bare space has one before every word; `encode_text` takes it from the first.
    """
    names = [_written(token) for token in tokenizer.tokens]
    spaces = [SPACE] if " " in tokenizer.tokens else []

    def spell(piece: str) -> list[str]:
        tokens: list[str] = []
        for word in normalize(piece).split():
            try:
                tokens += spaces + [names[token] for token in tokenizer.encode(word)]
            except ValueError:
                tokens += [*spaces, UNKNOWN]
        return tokens

    return spell


def token_vocabulary(tokenizer: Tokenizer) -> list[str]:
    """The marks and every token of a tokenizer, seen in a text or not; blank and end of sentence are no tokens here."""
    return [*MARKS, *map(_written, tokenizer.tokens[len(SPECIAL_TOKENS) :])]


def _written(token: str) -> str:
    return SPACE if token == " " else token


def choose_vocabulary(raw: RawText, spell: Speller, *, size: int | None, min_count: int) -> list[str]:
    """The marks and the most frequent words, most frequent first; equally frequent words in order of their letters.

    Args:
        raw: The text.
        spell: How to spell its pieces.
        size: Most words that are taken, the marks not counted; None takes all.
        min_count: How often a word must come to be taken.

    Raises:
        ValueError: If no word is left.
    """
    counts: Counter[str] = Counter()
    for piece, number in zip(raw.pieces[1:], np.bincount(raw.stream)[1:].tolist(), strict=True):
        for word in spell(piece):
            counts[word] += number
    if not counts:
        raise ValueError("the texts hold no words to count; name texts with one sentence a line")
    words = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
    if not words:
        raise ValueError(f"no word comes {min_count} times in the texts; lower min_count")
    return [*MARKS, *words[:size]]


def encode_text(raw: RawText, spell: Speller, vocabulary: Sequence[str]) -> Corpus:
    """Turns a text into ids; words that the vocabulary lacks become `<unk>`.

    Raises:
        ValueError: If normalisation leaves nothing of the text.
    """
    id_of = {word: index for index, word in enumerate(vocabulary)}
    spelled = [[END_ID, BEGIN_ID]]  # what the end of a line is
    spelled += [[id_of.get(unit, UNKNOWN_ID) for unit in spell(piece)] for piece in raw.pieces[1:]]
    ids = _expand(raw.stream, spelled)[1:-1]  # from the first <s> to the last </s>
    space = id_of.get(SPACE)
    if space is not None:
        ids = ids[~((ids == space) & (_shifted(ids, 1) == BEGIN_ID))]
    empty = (ids == BEGIN_ID) & (_shifted(ids, -1) == END_ID)  # and their </s> with them
    ids = ids[~(empty | _shifted(empty, 1))]
    if not len(ids):
        raise ValueError("the texts are empty, or normalisation leaves nothing of them; name texts with sentences")
    num_sentences = int((ids == BEGIN_ID).sum())
    num_unknown = int((ids == UNKNOWN_ID).sum())
    return Corpus(ids, list(vocabulary), num_sentences, len(ids) - 2 * num_sentences, num_unknown)


def _expand(stream: NDArray[np.int32], spelled: list[list[int]]) -> NDArray[np.int32]:
    """Puts the ids of every piece in its place."""
    flat = np.array([index for ids in spelled for index in ids], dtype=np.int32)
    lengths = np.array([len(ids) for ids in spelled])  # (P,)
    starts = np.cumsum(lengths) - lengths
    parts = []
    for begin in range(0, len(stream), _CHUNK):
        pieces = stream[begin : begin + _CHUNK]
        own = lengths[pieces]
        before = np.cumsum(own) - own
        parts.append(flat[np.repeat(starts[pieces] - before, own) + np.arange(own.sum())])
    return np.concatenate(parts)


def _shifted(values: NDArray, places: int) -> NDArray:
    """The neighbour of every value, before it (1) or behind it (-1); the ends, which have none, get a zero."""
    shifted = np.roll(values, places)
    shifted[0 if places > 0 else -1] = 0
    return shifted
