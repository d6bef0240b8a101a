"""Relative-entropy pruning (Stolcke 1998): leaves out the n-grams that the model can do without.

Without the n-gram h w, the model gives w the probability α'(h) p(w | h'), and the back-off weight of h changes from
α(h) to α'(h) = (rest(h) + p(w | h)) / (rest'(h) + p(w | h')), where rest(h) and rest'(h) are what p(· | h) and
p(· | h') leave for the words that have no n-gram behind h. The relative entropy between the model before and after is
(his equation 8)

    D = -P(h) { p(w | h) [log p(w | h') + log α'(h) - log p(w | h)] + rest(h) [log α'(h) - log α(h)] }

and the n-gram goes if the perplexity rises by a smaller share than the threshold, e^D - 1 < threshold. Two departures:

- P(h) is how often the text has h, not what the model says: the lower orders of a Kneser-Ney model are made for
  backing off and are poor estimates of that (Chelba et al. 2010).
- The paper decides on each n-gram as if the others of its history stayed. Where the words behind h are almost all
  there are, as with characters, each alone costs next to nothing and all together cost everything. So they go
  cheapest first, and each must be cheap with all before it gone.
"""

# M n-grams of one order, H histories (n-grams of the order below), K n-grams that may go

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from asr.ngrams.counts import first_of_run
from asr.ngrams.kneser_ney import Level, select
from asr.ngrams.texts import BEGIN_ID

_CHUNK = 1 << 22  # n-grams that are decided on at a time, which takes some 100 bytes each

Floats = NDArray[np.float64]


def prune(levels: Sequence[Level], *, threshold: float) -> list[Level]:
    """Leaves out n-grams of orders 2 and up, and sets the back-off weights so that all histories still sum to one.

    An n-gram that a longer one begins or ends with stays as long as that one does.

    Args:
        levels: One an order, as `kneser_ney.estimate` returns them.
        threshold: The largest relative increase of the perplexity that one n-gram may cost, such as 1e-8.

    Returns:
        The smaller levels. Highest orders of which nothing is left are left out.
    """
    levels = [replace(level, backoffs=level.backoffs.copy()) for level in levels]
    num_predicted = int(levels[0].counts.sum() - levels[0].counts[BEGIN_ID])
    kept = [np.ones(len(level.words), dtype=bool) for level in levels]
    for n in range(len(levels) - 1, 0, -1):
        free = np.ones(len(levels[n].words), dtype=bool)
        if n + 1 < len(levels):
            above, stays = levels[n + 1], kept[n + 1]
            free[above.parents[stays]] = False
            free[above.suffixes[stays]] = False
        # Costs are relative entropies times the length of the text, so that P(h) becomes a count.
        kept[n] = ~_prune_level(levels[n], levels[n - 1], free, max_cost=np.log1p(threshold) * num_predicted)
    return select(levels, kept)


@dataclass(slots=True)
class _Histories:
    """What the cost of n-grams takes from their histories; all arrays are (H,).

    Attributes:
        counts: How often the text has each.
        backoffs: α before anything goes.
        rest: What p(· | h) leaves for words without an n-gram.
        rest_below: What p(· | h') leaves for the same words.
    """

    counts: NDArray[np.int32]
    backoffs: Floats
    rest: Floats
    rest_below: Floats

    def backoffs_without(self, parents: NDArray, probs: Floats, lowers: Floats) -> Floats:
        """α' of histories that lose n-grams, from the sums of p(w | h) and of p(w | h') over what they lose."""
        return (self.rest[parents] + probs) / (self.rest_below[parents] + lowers)

    def costs(self, parents: NDArray, probs: Floats, lowers: Floats, entropies: Floats) -> Floats:
        """D of the head of this module times the length of the text, from the same sums and that of
        p(w | h) log (p(w | h') / p(w | h))."""
        log_backoffs = np.log(self.backoffs_without(parents, probs, lowers))
        change = log_backoffs - np.log(self.backoffs[parents])
        return -self.counts[parents] * (entropies + probs * log_backoffs + self.rest[parents] * change)


def _prune_level(level: Level, below: Level, free: NDArray[np.bool_], *, max_cost: float) -> NDArray[np.bool_]:
    """Which n-grams of a level go, (M,), of those that are free to; sets the back-off weights of their histories."""
    lower = below.probs[level.suffixes]  # (M,)
    rest_below = np.maximum(0.0, 1.0 - np.bincount(level.parents, weights=lower, minlength=len(below.words)))
    histories = _Histories(below.counts, below.backoffs, below.backoffs * rest_below, rest_below)
    gone = np.zeros(len(level.words), dtype=bool)
    begins = np.unique(np.searchsorted(level.parents, level.parents[::_CHUNK]))  # no history is cut in two
    for begin, end in pairwise([*begins, len(level.words)]):
        places = np.flatnonzero(free[begin:end]) + begin  # (K,)
        parents, probs, lowers = level.parents[places], level.probs[places], lower[places]
        goes = _decide(histories, parents, probs, lowers, max_cost=max_cost)
        gone[places[goes]] = True
        parents, probs, lowers = parents[goes], probs[goes], lowers[goes]
        starts = np.flatnonzero(first_of_run(parents))
        sums = (np.add.reduceat(values, starts) for values in (probs, lowers))
        below.backoffs[parents[starts]] = histories.backoffs_without(parents[starts], *sums)
    return gone


def _decide(
    histories: _Histories, parents: NDArray, probs: Floats, lowers: Floats, *, max_cost: float
) -> NDArray[np.bool_]:
    """Which n-grams go, (K,), from their histories, ascending, their p(w | h) and their p(w | h')."""
    entropies = probs * np.log(lowers / probs)
    alone = histories.costs(parents, probs, lowers, entropies)
    cheap = np.flatnonzero(alone < max_cost)
    order = cheap[np.lexsort((alone[cheap], parents[cheap]))]  # the cheapest of a history first
    first = first_of_run(parents[order])
    sums = [_running_sums(values[order], first) for values in (probs, lowers, entropies)]
    together = histories.costs(parents[order], *sums)
    added = np.where(first, together, np.diff(together, prepend=0.0))
    goes = np.zeros(len(parents), dtype=bool)
    goes[order[_running_sums(added >= max_cost, first) == 0]] = True
    return goes


def _running_sums(values: NDArray, first: NDArray[np.bool_]) -> NDArray:
    """Sums of each value and those before it in its group; `first` marks where a group begins."""
    sums = np.cumsum(values)
    starts = np.flatnonzero(first)
    before = sums[starts] - values[starts]
    return sums - before[np.cumsum(first) - 1]
