"""Pronunciation lexicons out of espeak-ng, which has rules for the words of about a hundred languages."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from asr.data.espeak import PHONEME_SEPARATOR, Synthesizer
from asr.data.text_files import read_lines
from asr.decoding.arpa import load_ngram
from asr.decoding.spelling import SPACE_MARK, is_tag
from asr.pronunciation import Lexicon, Pronunciation
from asr.text import normalize

_BREAKS = re.compile(rf"[{re.escape(PHONEME_SEPARATOR)}\s]+")
_LANGUAGE_MARK = re.compile(r"\([a-zA-Z0-9-]+\)")  # stands where a word is spoken by the rules of another language
# Stress, length, tone, and marks above and below: what is left tells words apart well enough, and is seen more often.
_LEFT_OUT = ("Lm", "Mn", "Sk", "Nd", "Pd")


def espeak_lexicon(words: Iterable[str], *, language: str) -> Lexicon:
    """How words are spoken by the rules of espeak-ng, one by one; a word of which nothing is heard is left out.

    Args:
        words: As `asr.text.normalize` leaves them.
        language: A voice of espeak-ng by its language code, such as "en-us" or "de".

    Raises:
        EspeakError: The wheel `espeakng-loader` is missing, or espeak-ng does not know the language.
        ValueError: If no word is left.
    """
    asked = sorted(set(words))
    with Synthesizer() as synthesizer:
        spoken = synthesizer.phonemes(asked, language=language)
    found = {word: [phones] for word, phonemes in zip(asked, spoken, strict=True) if (phones := split(phonemes))}
    if not found:
        raise ValueError(f"there is no word to look up, or espeak-ng says nothing of any of {len(asked)} words")
    return Lexicon(found)


def split(phonemes: str) -> Pronunciation:
    """The phones of a word out of espeak-ng's answer, without stress, length and diacritical marks."""
    parts = _BREAKS.split(unicodedata.normalize("NFD", _LANGUAGE_MARK.sub("", phonemes)))
    bare = ("".join(char for char in part if unicodedata.category(char) not in _LEFT_OUT) for part in parts)
    return tuple(filter(None, bare))


def distinct_words(texts: Iterable[Path], *, ngram: Path | None = None) -> set[str]:
    """The words of texts and manifests, normalised, and those that an n-gram model of words knows.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If one is damaged.
    """
    pieces = {piece for path in texts for _, line in read_lines(path) for piece in line.split()}
    if ngram is not None:
        words = load_ngram(ngram).words
        if any(word.startswith(SPACE_MARK) for word in words):
            raise ValueError(
                f"{ngram}: a language model of tokens; name one of words, whose pronunciations can be looked up"
            )
        pieces |= {word for word in words if not is_tag(word)}
    return {word for piece in pieces for word in normalize(piece).split()}
