"""Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998, section 3): from counts to probabilities.

    p(w | h) = (a(h w) - D(a(h w))) / A(h) + γ(h) p(w | h'),    A(h) = Σ_w a(h w),    h' = h without its first word

The highest order has the counts of the text as a; a lower one has the number of different words that stand before the
n-gram, for it is only asked where the longer history was not seen with the word. N-grams that begin with `<s>` have
nothing before them and keep their counts. Unigrams are interpolated with equal probabilities of all words but `<s>`,
which is never predicted. γ(h) is what the discounts, and the n-grams below the cut-off, leave over: it makes the sum
one.
"""

# V vocabulary, M n-grams of one order

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from asr.decoding.ngram import NgramTable, NgramTables
from asr.ngrams.counts import NgramCounts
from asr.ngrams.texts import BEGIN_ID

_FALLBACK = (0.5, 1.0, 1.5)
_NEVER = -99 * float(np.log(10))  # how ARPA files write the logarithm of zero


@dataclass(frozen=True, slots=True)
class Discounts:
    """What is taken from the counts of one order.

    Attributes:
        one: From counts of one, in [0, 1].
        two: From counts of two, in [0, 2].
        more: From higher counts, in [0, 3].
        estimated: Whether they come from the counts of counts, and not from the fallback or the user.
    """

    one: float
    two: float
    more: float
    estimated: bool

    def of(self, counts: NDArray) -> NDArray[np.float64]:
        """The discount of every count; nothing is taken from zero."""
        return np.array([0.0, self.one, self.two, self.more])[np.minimum(counts, 3)]


@dataclass(slots=True)
class Level:
    """The n-grams of one order while a model is built, sorted by parents, then words; all arrays are (M,).

    Attributes:
        parents: Place of the first n-1 words in the level below; 0 for unigrams.
        words: Last words.
        suffixes: Place of the last n-1 words in the level below; 0 for unigrams.
        counts: How often the text has each.
        probs: p(word | the words before it), float64.
        backoffs: γ of the n-gram as a history, float64; 1 where no n-gram goes on from it.
    """

    parents: NDArray[np.int32]
    words: NDArray[np.int32]
    suffixes: NDArray[np.int32]
    counts: NDArray[np.int32]
    probs: NDArray[np.float64]
    backoffs: NDArray[np.float64]


def estimate(
    counts: Sequence[NgramCounts], *, vocab_size: int, cutoffs: Sequence[int] = (), discount: float | None = None
) -> tuple[list[Level], list[Discounts]]:
    """Estimates a model of the orders that were counted.

    Discounts and lower-order counts are taken from the whole text, before the cut-offs: what is cut off still says how
    often a history goes on in a new way.

    Args:
        counts: One table an order, as `counts.count_ngrams` returns them.
        vocab_size: V.
        cutoffs: For orders 2, 3, …: n-grams that come at most so often are left out. The last one serves all higher
            orders; they must not fall, so that the first and the last words of what is kept are kept too.
        discount: One discount for all counts and orders, in [0, 1]; None estimates them.

    Returns:
        Levels and discounts, one an order.
    """
    levels: list[Level] = []
    discounts: list[Discounts] = []
    kept: list[NDArray[np.bool_]] = []
    for n, (table, adjusted) in enumerate(zip(counts, _adjusted(counts, vocab_size), strict=True), start=1):
        own = estimate_discounts(adjusted) if discount is None else Discounts(discount, discount, discount, False)
        cutoff = cutoffs[min(n - 2, len(cutoffs) - 1)] if n > 1 and cutoffs else 0
        kept.append(table.counts > cutoff if cutoff else np.ones(len(table.keys), dtype=bool))
        below = levels[-1] if levels else None
        levels.append(_level(table, adjusted, own, kept[-1], below=below, vocab_size=vocab_size))
        discounts.append(own)
    return select(levels, kept), discounts


def estimate_discounts(counts: NDArray) -> Discounts:
    """Discounts from counts of counts (Chen and Goodman 1998, equation 26).

    With n_k the number of n-grams of count k and Y = n_1 / (n_1 + 2 n_2), they are D_k = k - (k + 1) Y n_{k+1} / n_k.
    Texts that are tiny, or of few different tokens, lack such counts, or give discounts outside (0, k]; they get 0.5, 1
    and 1.5. The probabilities sum to one with any discounts.
    """
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=5)[1:5].tolist()
    if min(n1, n2, n3, n4) == 0:
        return Discounts(*_FALLBACK, False)
    y = n1 / (n1 + 2 * n2)
    one, two, more = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    # None exceeds its k, and D_1 = Y is above 0, whatever the counts are.
    return Discounts(one, two, more, True) if min(two, more) > 0 else Discounts(*_FALLBACK, False)


def _adjusted(counts: Sequence[NgramCounts], vocab_size: int) -> list[NDArray[np.int32]]:
    """The counts a of every order, see the head of this module; that of `<s>` alone is zero."""
    adjusted = []
    begins = np.arange(vocab_size) == BEGIN_ID  # n-grams whose first word is <s>
    for n, table in enumerate(counts):
        if n:
            begins = begins[table.keys // vocab_size]
        own = table.counts
        if n + 1 < len(counts):
            before = np.bincount(counts[n + 1].suffixes, minlength=len(own)).astype(np.int32)
            own = np.where(begins, own, before)
        if not n:
            own = np.where(begins, 0, own)
        adjusted.append(own)
    return adjusted


def _level(
    table: NgramCounts,
    adjusted: NDArray[np.int32],
    discounts: Discounts,
    kept: NDArray[np.bool_],
    *,
    below: Level | None,
    vocab_size: int,
) -> Level:
    """The level of a table; it sets the back-off weights of the level below."""
    words = (table.keys % vocab_size).astype(np.int32)
    parents = (table.keys // vocab_size).astype(np.int32)
    taken = discounts.of(adjusted)
    if below is None:
        parents[:] = 0
        total = adjusted.sum()
        probs = (adjusted - taken) / total + taken.sum() / total / (vocab_size - 1)
        probs[BEGIN_ID] = 0.0
    else:
        totals = np.bincount(parents, weights=adjusted, minlength=len(below.words))
        left_over = np.bincount(parents, weights=np.where(kept, taken, adjusted), minlength=len(below.words))
        goes_on = totals > 0
        below.backoffs[goes_on] = left_over[goes_on] / totals[goes_on]
        probs = (adjusted - taken) / totals[parents] + below.backoffs[parents] * below.probs[table.suffixes]
    return Level(parents, words, table.suffixes, table.counts, probs, np.ones(len(words)))


def select(levels: Sequence[Level], kept: Sequence[NDArray[np.bool_]]) -> list[Level]:
    """Keeps some n-grams, and numbers anew what refers to them; highest orders that lose all are left out.

    Args:
        levels: One an order.
        kept: Which n-grams stay, (M,) an order: all unigrams, and the parent and the suffix of all that stay.
    """
    selected: list[Level] = []
    renumbered = np.zeros(1, dtype=np.int32)
    for level, mask in zip(levels, kept, strict=True):
        if not mask.any():
            break
        if mask.all() and len(renumbered) == (renumbered[-1] + 1):
            selected.append(level)
        else:
            selected.append(
                Level(
                    parents=renumbered[level.parents[mask]],
                    words=level.words[mask],
                    suffixes=renumbered[level.suffixes[mask]],
                    counts=level.counts[mask],
                    probs=level.probs[mask],
                    backoffs=level.backoffs[mask],
                )
            )
        renumbered = np.cumsum(mask, dtype=np.int32) - 1
    return selected


def to_tables(levels: Sequence[Level], vocabulary: Sequence[str]) -> NgramTables:
    """The model as `asr.decoding` uses it and ARPA files hold it: natural logarithms, float32."""
    tables = []
    for level in levels:
        with np.errstate(divide="ignore"):
            log_probs, backoffs = np.log(level.probs), np.log(level.backoffs)
        tables.append(
            NgramTable(
                parents=torch.from_numpy(level.parents.astype(np.int64)),
                words=torch.from_numpy(level.words.astype(np.int64)),
                log_probs=torch.from_numpy(np.maximum(log_probs, _NEVER).astype(np.float32)),
                backoffs=torch.from_numpy(np.maximum(backoffs, _NEVER).astype(np.float32)),
            )
        )
    return NgramTables(list(vocabulary), tables)
