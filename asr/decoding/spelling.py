"""The words of an n-gram model as a recogniser's tokenizer spells them."""

# M words of the model

import numpy as np
from numpy.typing import NDArray

from asr.decoding.ngram import NgramModel
from asr.text import normalize
from asr.tokenizer import SPECIAL_TOKENS, Tokenizer

SPACE_MARK = "\u2581"  # how models of tokens write the space, which cannot be an ARPA word
LOG_ZERO = -700.0  # what impossible words get: -inf less -inf would be NaN, and this has a power of e above zero


def is_tag(word: str) -> bool:
    """`<s>`, `</s>`, `<unk>`, `<UNK>` and their like, which nobody speaks."""
    return word.startswith("<") and word.endswith(">")


def fits_tokens(model: NgramModel, tokenizer: Tokenizer) -> bool:
    """Whether a model is one of this tokenizer's tokens, for `TokenNgramScorer`, and not of words.

    It is when its words, but for tags as `<s>`, are just the ordinary tokens, the space written as U+2581.
    """
    return {word for word in model.words if not is_tag(word)} == set(written_tokens(tokenizer))


def written_tokens(tokenizer: Tokenizer) -> list[str]:
    """The ordinary tokens as a model of tokens writes them."""
    return [token.replace(" ", SPACE_MARK) for token in tokenizer.tokens[len(SPECIAL_TOKENS) :]]


def word_spellings(model: NgramModel, tokenizer: Tokenizer, log_probs: NDArray[np.float64]) -> dict[str, int]:
    """The id of the word that each spelling stands for.

    Args:
        model: Words are normalised where the tokenizer cannot spell them as they are. Where words are the same then,
            the most probable counts.
        tokenizer: The recogniser's.
        log_probs: Of the words without context, (M,).

    Raises:
        ValueError: If the model is one of tokens, or the tokenizer can spell too few of its words.
    """
    characters = frozenset("".join(tokenizer.texts)) - {" "}
    spellings: dict[str, int] = {}
    unfit = []
    num_words = 0
    for index, word in enumerate(model.words):
        if is_tag(word):
            continue
        if word.startswith(SPACE_MARK):
            raise ValueError(
                f"the language model has the word {word!r}, so it is one of tokens, but not of just this tokenizer's; "
                "train it again on text that this tokenizer has cut into tokens, or on words"
            )
        num_words += 1
        spelling = word if characters.issuperset(word) else _normalized(word)
        if not spelling or not characters.issuperset(spelling):
            unfit.append(word)
        elif spelling not in spellings or log_probs[index] > log_probs[spellings[spelling]]:
            spellings[spelling] = index
    if not spellings or 2 * len(unfit) > num_words:
        example = f", not {unfit[0]!r} for one" if unfit else ""
        raise ValueError(
            f"the language model does not fit the tokenizer, whose characters spell {num_words - len(unfit)} of its "
            f"{num_words} words{example}; train it on text in the same language and form (asr.text.normalize)"
        )
    return spellings


def _normalized(word: str) -> str:
    """The same as `normalize`, which is slow for a whole vocabulary, and is this for most of its words."""
    return word.lower() if word.isascii() and word.isalpha() else normalize(word)
