"""How words are spoken: a pronunciation lexicon, and the phones of a transcript as numbers.

A lexicon is a text file (plain, .gz or .xz) with a word and its phones on a line, parted by white space; a word with
several pronunciations has a line for each. What phones are called is up to the file, so those of Kaldi recipes and of
CMU's dictionary serve as they are: words may be in upper case, have a number, `READ(2)`, or a probability behind them,
which is not used. `recipes/make_lexicon.py` makes one with espeak-ng.
"""

import lzma
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from asr.compression import reading_text
from asr.text import normalize

Pronunciation = tuple[str, ...]

_PLAIN = re.compile(r"[a-z]+(?:'[a-z]+)?")  # what `normalize` leaves as it is, but that takes longer to say
_NUMBER = re.compile(r"\(\d+\)$")
_PROBABILITY = re.compile(r"[01]\.\d+")


class Lexicon:
    """Words with their pronunciations.

    Args:
        pronunciations: At least one of each word, the usual one first; each has at least one phone.
    """

    def __init__(self, pronunciations: Mapping[str, Sequence[Pronunciation]]) -> None:
        self.pronunciations = dict(pronunciations)

    def __len__(self) -> int:
        return len(self.pronunciations)

    def phones(self, texts: Iterable[str]) -> list[str]:
        """The distinct phones of the usual pronunciations of all words of some texts, sorted.

        Raises:
            ValueError: If it lacks words.
        """
        words = {word for text in texts for word in text.split()}
        missing = sorted(words - self.pronunciations.keys())
        if missing:
            raise ValueError(_missing(missing))
        return sorted({phone for word in words for phone in self.usual(word)})

    def usual(self, word: str) -> Pronunciation:
        """The first pronunciation of a word.

        Raises:
            ValueError: If it lacks the word.
        """
        if word not in self.pronunciations:
            raise ValueError(_missing([word]))
        return self.pronunciations[word][0]


def _missing(words: Sequence[str]) -> str:
    named = "the word " + repr(words[0]) if len(words) == 1 else f"{len(words)} words, such as {', '.join(words[:5])}"
    return (
        f"the pronunciation lexicon lacks {named}; make one of these texts too with recipes/make_lexicon.py, or add "
        "what is missing"
    )


class PhoneEncoder:
    """Texts as numbers of phones, for CTC: 0 is the blank, phones follow from 1 on.

    Args:
        lexicon: Of all words that will be asked for.
        phones: The inventory, each once.
    """

    def __init__(self, lexicon: Lexicon, phones: Sequence[str]) -> None:
        self.lexicon = lexicon
        self._ids = {phone: number for number, phone in enumerate(phones, start=1)}

    def encode(self, text: str) -> list[int]:
        """The usual pronunciations of all words of a text.

        Raises:
            ValueError: If the lexicon lacks a word, or the inventory one of its phones.
        """
        return [number for word in text.split() for number in self.numbers(word, self.lexicon.usual(word))]

    def numbers(self, word: str, pronunciation: Pronunciation) -> list[int]:
        """One pronunciation of a word.

        Raises:
            ValueError: If the inventory lacks one of its phones.
        """
        for phone in pronunciation:
            if phone not in self._ids:
                raise ValueError(
                    f"the word {word!r} is spoken with the phone {phone!r}, which the model does not know; "
                    f"it knows {' '.join(self._ids)}"
                )
        return [self._ids[phone] for phone in pronunciation]


def read_lexicon(path: Path) -> Lexicon:
    """Reads a lexicon.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, has a word without phones, or no word at all.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such pronunciation lexicon; recipes/make_lexicon.py makes one")
    found: dict[str, list[Pronunciation]] = {}
    with reading_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            written, *phones = line.split() or [""]
            word = written if _PLAIN.fullmatch(written) else normalize(_NUMBER.sub("", written))
            if not word or written.startswith(("<", "!")):  # Kaldi's silence and unknown words
                continue
            if phones and phones[0][0] in "01" and _PROBABILITY.fullmatch(phones[0]):
                del phones[0]
            if not phones:
                raise ValueError(f"{path}: line {number} has the word {word!r} without phones; write them behind it")
            own, pronunciation = found.get(word), tuple(phones)
            if own is None:
                found[word] = [pronunciation]
            elif pronunciation not in own:
                own.append(pronunciation)
    if not found:
        raise ValueError(f"{path}: holds no word; give a file with a word and its phones on every line")
    return Lexicon(found)


def write_lexicon(path: Path, lexicon: Lexicon) -> None:
    """Writes a lexicon in the order of its words, compressed if the name ends in .xz; equal ones give equal files."""
    lines = [f"{word} {' '.join(each)}\n" for word, own in sorted(lexicon.pronunciations.items()) for each in own]
    content = "".join(lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(content, preset=9) if path.suffix == ".xz" else content)
