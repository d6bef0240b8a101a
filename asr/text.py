"""The one text normaliser: training transcripts, language-model text and both sides of every score pass through it."""

import re
import unicodedata
from functools import lru_cache

APOSTROPHE = "'"
# NFKC would turn some of these into a space and an accent, so they become plain apostrophes before it.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u055a\uff07", APOSTROPHE))
# A backquote or an acute accent is an apostrophe only where it was typed in place of one, as in don`t.
_MISTYPED_APOSTROPHE = re.compile(r"(?<=\w)[`\u00b4](?=\w)")
# Not dashes to Unicode, but people write them between words just the same. NFKC turns an ellipsis into full stops.
_SEPARATORS = frozenset("/\\_\u2044\u2212\u2215")
_ELLIPSIS = re.compile(r"\u2026|\.{2,}")
# Marks without a look of their own: the combining grapheme joiner and the variation selectors that follow emoji.
_INVISIBLE_MARKS = frozenset(map(chr, (0x034F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))


def normalize(text: str) -> str:
    """Bring text to the form that models are trained on and scores are computed on.

    Unicode NFKC, lower case, apostrophes in one form and only next to a letter (`don't`, `dogs'`, `'tis`), and single
    spaces between words. Hyphens, dashes, slashes, underscores and ellipses separate words; all other punctuation and
    symbols are dropped without a trace (`u.s.` becomes `us`). Letters, digits and combining marks of every script stay.
    Numbers are not spelled out.

    Returns:
        The normalised text, possibly empty. Normalising it again changes nothing.
    """
    text = _MISTYPED_APOSTROPHE.sub(APOSTROPHE, text.translate(_APOSTROPHES))
    text = unicodedata.normalize("NFKC", _ELLIPSIS.sub(" ", text))
    # Lower-casing can leave a decomposed letter behind (the Turkish dotted capital I), so NFKC comes twice.
    text = unicodedata.normalize("NFKC", text.lower())
    text = " ".join(_keep_words(text).split())
    text = re.sub("'+", APOSTROPHE, text)
    text = re.sub("'", lambda match: APOSTROPHE if _touches_letter(match) else "", text)
    # A dropped apostrophe may leave two spaces or an edge; a dropped symbol may bring a letter and its accent together.
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _keep_words(text: str) -> str:
    """Keep letters, digits, their marks and apostrophes; separators become spaces and the rest vanishes."""
    kept = []
    may_carry_mark = False
    for char in text:
        kind = _kind(char)
        if kind == "invisible":
            continue
        # A mark whose base was dropped would otherwise land on the letter before it.
        if kind == "word" or (kind == "mark" and may_carry_mark):
            kept.append(char)
            may_carry_mark = True
            continue
        may_carry_mark = False
        if kind == "apostrophe":
            kept.append(char)
        elif kind == "separator":
            kept.append(" ")
    return "".join(kept)


@lru_cache(maxsize=4096)
def _kind(char: str) -> str:
    """Sort a character into word, mark, invisible, apostrophe, separator or other."""
    category = unicodedata.category(char)
    if category[0] in "LN":
        return "word"
    if category in ("Mn", "Mc"):
        return "invisible" if char in _INVISIBLE_MARKS else "mark"
    if char == APOSTROPHE:
        return "apostrophe"
    if char.isspace() or category in ("Zs", "Zl", "Zp", "Pd") or char in _SEPARATORS:
        return "separator"
    return "other"


def _touches_letter(match: re.Match[str]) -> bool:
    """Whether a letter, or the mark of one, stands directly before or after the match."""
    neighbours = match.string[max(0, match.start() - 1) : match.start()] + match.string[match.end() : match.end() + 1]
    return any(unicodedata.category(char)[0] in "LM" for char in neighbours)
