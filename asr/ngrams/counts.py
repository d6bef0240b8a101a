"""Counts of all n-grams of a text, orders 1 … N, by sorting: no loop over n-grams, and memory in bounds.

The n-grams of one order are a sorted table. An n-gram is the place of its first n-1 words in the table of order n-1 and
its last word, packed into one 64-bit key, so that a table in the order of its keys is in the order of its words.
"""

# S ids of a text, V vocabulary, M n-grams of one order, C positions of a chunk

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.ngrams.texts import END_ID

_CHUNK = 1 << 22  # positions that are sorted at a time; sorting takes about 50 bytes a position


@dataclass(slots=True)
class NgramCounts:
    """All distinct n-grams of one order, in the order of their words.

    Attributes:
        keys: parent · V + last word, ascending, (M,) int64; the parent of a unigram is 0.
        counts: How often each comes, (M,) int32.
        suffixes: Place of its last n-1 words in the table of order n-1, (M,) int32; 0 for unigrams.
    """

    keys: NDArray[np.int64]
    counts: NDArray[np.int32]
    suffixes: NDArray[np.int32]


def count_ngrams(ids: NDArray[np.int32], *, vocab_size: int, order: int, chunk: int = _CHUNK) -> list[NgramCounts]:
    """Counts the n-grams of orders 1 … `order`, none across sentences.

    Args:
        ids: Sentences one after the other, each from `<s>` to `</s>`, (S,) int32, as `texts.encode_text` makes them.
        vocab_size: V; every word has a unigram, seen or not.
        order: The highest order, at least 1.
        chunk: Positions to sort at a time; it bounds the memory and changes no result.

    Returns:
        One table an order. Orders that no sentence is long enough for are left out.
    """
    counts = np.bincount(ids, minlength=vocab_size).astype(np.int32)
    tables = [NgramCounts(np.arange(vocab_size), counts, np.zeros(vocab_size, dtype=np.int32))]
    places = ids  # of the n-gram that begins at each position, -1 where a sentence ends before it does
    for n in range(2, order + 1):
        table, places = _extend(ids, places, n=n, vocab_size=vocab_size, chunk=chunk, last=n == order)
        if not len(table.keys):
            break
        tables.append(table)
    return tables


def first_of_run(values: NDArray) -> NDArray[np.bool_]:
    """Where each group of equal neighbours begins, (N,) of (N,)."""
    first = np.ones(len(values), dtype=bool)
    first[1:] = values[1:] != values[:-1]
    return first


def _extend(
    ids: NDArray[np.int32], places: NDArray[np.int32], *, n: int, vocab_size: int, chunk: int, last: bool
) -> tuple[NgramCounts, NDArray[np.int32]]:
    """The table of order n and the places in it, (S,), from the places in the table of order n-1.

    The last table needs no places: nothing extends it.
    """
    runs: list[NgramCounts] = []
    longer = np.full(0 if last else len(ids), -1, dtype=np.int32)
    # An n-gram begins here if the n-1 words do and do not end the sentence.
    goes_on = places >= 0
    goes_on[: len(ids) - n + 2] &= ids[n - 2 :] != END_ID
    for begin in range(0, len(ids), chunk):
        positions = np.flatnonzero(goes_on[begin : begin + chunk]) + begin  # (C,)
        keys = places[positions].astype(np.int64) * vocab_size + ids[positions + n - 1]
        order = np.argsort(keys)
        keys, positions = keys[order], positions[order]
        first = first_of_run(keys)
        starts = np.flatnonzero(first)
        counts = np.diff(starts, append=len(keys)).astype(np.int32)
        runs.append(NgramCounts(keys[starts], counts, places[positions[starts] + 1]))
        if not last:
            longer[positions] = np.cumsum(first) - 1  # in this run; in the whole table below
    table = _merge(runs)
    for begin, run in zip(range(0, len(longer), chunk), runs, strict=False):
        part = longer[begin : begin + chunk]
        there = part >= 0
        part[there] = np.searchsorted(table.keys, run.keys)[part[there]]
    return table, longer


def _merge(runs: list[NgramCounts]) -> NgramCounts:
    """One table of many: equal n-grams become one and their counts are added."""
    if len(runs) == 1:
        return runs[0]
    keys = np.concatenate([run.keys for run in runs])
    order = np.argsort(keys, kind="stable")  # merges what is sorted already, in linear time
    keys = keys[order]
    starts = np.flatnonzero(first_of_run(keys))
    counts = np.concatenate([run.counts for run in runs])[order]
    suffixes = np.concatenate([run.suffixes for run in runs])[order[starts]]
    return NgramCounts(keys[starts], np.add.reduceat(counts, starts), suffixes)
