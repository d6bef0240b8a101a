from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_text import Sentences, ids_of, random_sentences, vocabulary_of

from asr.ngrams.counts import NgramCounts, count_ngrams


def spelled(tables: list[NgramCounts], vocabulary: list[str]) -> list[list[tuple[str, ...]]]:
    """The n-grams of every table in words."""
    ngrams: list[list[tuple[str, ...]]] = [[(word,) for word in vocabulary]]
    for table in tables[1:]:
        parents, words = np.divmod(table.keys, len(vocabulary))
        ngrams.append([(*ngrams[-1][parent], vocabulary[word]) for parent, word in zip(parents, words, strict=True)])
    return ngrams


def counted(sentences: Sentences, *, n: int) -> Counter[tuple[str, ...]]:
    """The same the slow way."""
    padded = [("<s>", *sentence, "</s>") for sentence in sentences]
    return Counter(words[start : start + n] for words in padded for start in range(len(words) - n + 1))


def check(sentences: Sentences, *, order: int, chunk: int) -> None:
    vocabulary = vocabulary_of(sentences)
    tables = count_ngrams(ids_of(sentences, vocabulary), vocab_size=len(vocabulary), order=order, chunk=chunk)
    ngrams = spelled(tables, vocabulary)
    for n, (table, own) in enumerate(zip(tables, ngrams, strict=True), start=1):
        assert (np.diff(table.keys) > 0).all()
        assert {ngram: count for ngram, count in zip(own, table.counts.tolist(), strict=True) if count} == counted(
            sentences, n=n
        )
        if n > 1:
            assert [ngrams[n - 2][suffix] for suffix in table.suffixes] == [ngram[1:] for ngram in own]
    assert not any(counted(sentences, n=n) for n in range(len(tables) + 1, order + 1))


@pytest.mark.parametrize("chunk", [7, 64, 10_000])
def test_counts_are_those_of_a_dictionary_whatever_is_sorted_at_a_time(chunk):
    check(random_sentences(), order=4, chunk=chunk)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), min_size=1, max_size=8),
    st.integers(1, 6),
    st.integers(1, 9),
)
def test_any_text_is_counted_right(sentences, order, chunk):
    check(sentences, order=order, chunk=chunk)


def test_orders_that_no_sentence_is_long_enough_for_are_left_out():
    ids = ids_of([["a"], ["b"]], ["<unk>", "<s>", "</s>", "a", "b"])
    assert [table.counts.tolist() for table in count_ngrams(ids, vocab_size=5, order=9)] == [
        [0, 2, 2, 1, 1],
        [1, 1, 1, 1],
        [1, 1],
    ]
