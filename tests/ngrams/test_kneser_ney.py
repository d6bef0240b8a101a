"""The estimation against a plain implementation of Chen and Goodman's equations, and against NLTK."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from random_text import (
    Sentences,
    all_histories,
    contexts_of,
    ids_of,
    random_sentences,
    vocabulary_of,
)

from asr.decoding.ngram import NgramModel
from asr.ngrams.counts import count_ngrams
from asr.ngrams.kneser_ney import Discounts, Level, estimate, estimate_discounts, to_tables

VOCABULARY = vocabulary_of(random_sentences())


def train(
    sentences: Sentences, *, order: int, cutoffs: Sequence[int] = (), discount: float | None = None
) -> tuple[list[Level], list[Discounts], NgramModel]:
    counts = count_ngrams(ids_of(sentences, VOCABULARY), vocab_size=len(VOCABULARY), order=order)
    levels, discounts = estimate(counts, vocab_size=len(VOCABULARY), cutoffs=cutoffs, discount=discount)
    return levels, discounts, NgramModel(to_tables(levels, VOCABULARY))


class Reference:
    """Interpolated modified Kneser-Ney in dictionaries, from the equations of Chen and Goodman (1998), section 3."""

    def __init__(self, sentences: Sentences, *, order: int, discount: float | None = None) -> None:
        self.counts: list[dict[tuple[str, ...], int]] = []
        for n in range(1, order + 1):
            raw: Counter[tuple[str, ...]] = Counter()
            before: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
            for sentence in sentences:
                words = ("<s>", *sentence, "</s>")
                for start in range(len(words) - n + 1):
                    ngram = words[start : start + n]
                    raw[ngram] += 1
                    if start:
                        before[ngram].add(words[start - 1])
            lower = {ngram: len(before[ngram]) if ngram[0] != "<s>" else raw[ngram] for ngram in raw}
            self.counts.append(dict(raw) if n == order else lower)
        self.counts[0].pop(("<s>",), None)
        self.discounts = [self.discounts_of(counts) if discount is None else [discount] * 3 for counts in self.counts]

    @staticmethod
    def discounts_of(counts: dict[tuple[str, ...], int]) -> list[float]:
        """Equation 26."""
        n = Counter(counts.values())
        if not all(n[k] for k in (1, 2, 3, 4)):
            return [0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        discounts = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
        return discounts if min(discounts) > 0 else [0.5, 1.0, 1.5]

    def prob(self, word: str, history: tuple[str, ...]) -> float:
        """Equation 25, down to equal probabilities of all words that can be predicted."""
        n = len(history)
        followers = {ngram[-1]: count for ngram, count in self.counts[n].items() if ngram[:-1] == history}
        lower = self.prob(word, history[1:]) if history else 1 / (len(VOCABULARY) - 1)
        if not followers:
            return lower
        total = sum(followers.values())
        numbers = Counter(min(count, 3) for count in followers.values())
        gamma = sum(self.discounts[n][k - 1] * numbers[k] for k in (1, 2, 3)) / total
        count = followers.get(word, 0)
        taken = self.discounts[n][min(count, 3) - 1] if count else 0.0
        return (count - taken) / total + gamma * lower


def probs_of(model: NgramModel, histories: Sequence[tuple[str, ...]]) -> np.ndarray:
    """p of the whole vocabulary after histories of one length, (R, V)."""
    return model.score_all(contexts_of(model, histories)).double().exp().numpy()


@pytest.mark.parametrize("discount", [None, 0.7])
@pytest.mark.parametrize(("order", "num_sentences"), [(1, 150), (2, 150), (3, 150), (3, 2)])
def test_probabilities_are_those_of_the_equations(order, num_sentences, discount):
    sentences = random_sentences(num_sentences=num_sentences)
    reference = Reference(sentences, order=order, discount=discount)
    levels, discounts, model = train(sentences, order=order, discount=discount)
    assert len(levels) == order
    assert [[own.one, own.two, own.more] for own in discounts] == [pytest.approx(own) for own in reference.discounts]
    histories = all_histories(VOCABULARY, length=order - 1) if order > 1 else [()]
    expected = [[reference.prob(word, history) for word in VOCABULARY] for history in histories]
    found = probs_of(model, histories)
    for column, word in enumerate(VOCABULARY):
        if word != "<s>":
            np.testing.assert_allclose(found[:, column], np.array(expected)[:, column], rtol=2e-5)


def test_the_longest_text_here_has_discounts_of_its_own_in_the_highest_order():
    _, discounts, _ = train(random_sentences(), order=3)
    assert discounts[2].estimated  # or the comparison above would only see the fallback


def test_with_one_discount_it_is_what_nltk_computes():
    """NLTK leaves unigrams undiscounted and gives `<s>` no counts of its own in lower orders. Its unigrams are replaced
    by those of the equations, and histories that begin with `<s>` are compared where they are of the highest order."""
    lm = pytest.importorskip("nltk.lm")
    sentences = random_sentences(num_sentences=60)
    reference = Reference(sentences, order=3, discount=0.7)
    theirs = lm.KneserNeyInterpolated(3, discount=0.7)
    padded = [("<s>", *sentence, "</s>") for sentence in sentences]
    ngrams = [[words[start : start + n] for n in (1, 2, 3) for start in range(len(words) - n + 1)] for words in padded]
    theirs.fit(ngrams, vocabulary_text=[word for word in VOCABULARY if word != "<unk>"])
    theirs.estimator.unigram_score = lambda word: reference.prob(word, ())
    _, _, model = train(sentences, order=3, discount=0.7)
    seen = sorted({words[start : start + 2] for words in padded for start in range(1, len(words) - 2)})
    assert len(seen) > 30
    words = VOCABULARY[2:]
    expected = [[theirs.unmasked_score(word, history) for word in words] for history in seen]
    np.testing.assert_allclose(probs_of(model, seen)[:, 2:], expected, rtol=2e-5)


@pytest.mark.parametrize("cutoffs", [(), (0, 1), (1, 1, 2), (2,), (3, 100)])
def test_probabilities_of_every_history_sum_to_one_after_cutoffs(cutoffs):
    sentences = random_sentences(num_sentences=100)
    levels, _, model = train(sentences, order=4, cutoffs=cutoffs)
    probs = probs_of(model, all_histories(VOCABULARY, length=3))
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, atol=3e-6)
    assert (probs[:, 1] == pytest.approx(0.0, abs=1e-30)) and (np.delete(probs, 1, axis=1) > 0).all()
    for n, level in enumerate(levels[1:]):
        cutoff = cutoffs[min(n, len(cutoffs) - 1)] if cutoffs else 0
        assert level.counts.min() > cutoff


def test_cutoffs_leave_out_what_is_rare_and_nothing_else():
    sentences = random_sentences()
    whole, _, _ = train(sentences, order=3)
    levels, _, model = train(sentences, order=3, cutoffs=(1, 3))
    assert [len(level.words) for level in levels] == [
        len(VOCABULARY),
        (whole[1].counts > 1).sum(),
        (whole[2].counts > 3).sum(),
    ]
    # What stays is discounted as before and interpolated with more.
    assert math.fsum(levels[2].probs) > math.fsum(whole[2].probs[whole[2].counts > 3])
    assert model.order == 3


def test_orders_that_cutoffs_empty_are_left_out():
    levels, discounts, model = train(random_sentences(num_sentences=5), order=4, cutoffs=(1, 90))
    assert (len(levels), len(discounts), model.order) == (2, 4, 2)


def test_words_that_no_text_has_are_possible():
    _, _, model = train([["a", "b"], ["b"]], order=2)
    probs = probs_of(model, [("<s>",), ("a",), ("c",)])
    assert (probs[:, [0, 5, 6]] > 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((10, 5, 3, 2), Discounts(0.5, 2 - 1.5 * 3 / 5, 3 - 2 * 2 / 3, True)),
        ((10, 5, 3, 0), Discounts(0.5, 1.0, 1.5, False)),  # no count of four
        ((), Discounts(0.5, 1.0, 1.5, False)),
        ((10, 1, 9, 1), Discounts(0.5, 1.0, 1.5, False)),  # D_2 would be below zero
    ],
)
def test_discounts_come_from_counts_of_counts_or_are_the_fallback(numbers, expected):
    counts = np.repeat([1, 2, 3, 4, 9], [*numbers, *[0] * (4 - len(numbers)), 5])
    found = estimate_discounts(counts)
    assert found.estimated == expected.estimated
    assert (found.one, found.two, found.more) == pytest.approx((expected.one, expected.two, expected.more))
    assert found.of(np.array([0, 1, 2, 3, 50])).tolist() == [0.0, found.one, found.two, found.more, found.more]


def test_tables_are_float32_and_say_never_as_arpa_files_do():
    _, _, model = train(random_sentences(), order=2)
    start = model.levels[0].log_probs[1]
    assert start.dtype == torch.float32
    assert float(start) == pytest.approx(-99 * math.log(10))
