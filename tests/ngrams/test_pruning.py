import math

import numpy as np
import pytest
from random_text import Sentences, all_histories, contexts_of, ids_of, random_sentences, vocabulary_of

from asr.decoding.ngram import NgramModel
from asr.ngrams import pruning
from asr.ngrams.counts import count_ngrams
from asr.ngrams.kneser_ney import Level, estimate, select, to_tables
from asr.ngrams.pruning import prune


def levels_of(sentences: Sentences, *, order: int) -> list[Level]:
    vocabulary = vocabulary_of(sentences)
    counts = count_ngrams(ids_of(sentences, vocabulary), vocab_size=len(vocabulary), order=order)
    return estimate(counts, vocab_size=len(vocabulary))[0]


def bigrams(levels: list[Level]) -> set[tuple[int, int]]:
    if len(levels) < 2:
        return set()
    return set(zip(levels[1].parents.tolist(), levels[1].words.tolist(), strict=True))


def spelled(levels: list[Level]) -> list[dict[tuple[int, ...], float]]:
    """The probability of the n-grams of every order."""
    ngrams: list[list[tuple[int, ...]]] = [[()]]
    for level in levels:
        below = ngrams[-1]
        ngrams.append(
            [(*below[parent], word) for parent, word in zip(level.parents, level.words.tolist(), strict=True)]
        )
    return [dict(zip(own, level.probs.tolist(), strict=True)) for own, level in zip(ngrams[1:], levels, strict=True)]


def distributions(levels: list[Level]) -> np.ndarray:
    """p(word | history) of a bigram model, (V, V), from its parts."""
    unigrams = levels[0].probs
    probs = levels[0].backoffs[:, None] * unigrams
    if len(levels) > 1:
        probs[levels[1].parents, levels[1].words] = levels[1].probs
    return probs


def relative_entropy(levels: list[Level], pruned: list[Level]) -> float:
    """Σ_h P(h) Σ_w p(w | h) log (p(w | h) / p'(w | h)), the definition."""
    before, after = distributions(levels), distributions(pruned)
    predicted = np.arange(len(before)) != 1
    counts = levels[0].counts * (np.arange(len(before)) != 2)  # nothing follows </s>
    weights = counts / levels[0].counts[predicted].sum()
    ratios = np.log(before[:, predicted] / after[:, predicted])
    return float((weights[:, None] * before[:, predicted] * ratios).sum())


def without(levels: list[Level], place: int) -> list[Level]:
    """The bigram model without one bigram, its back-off weight set so that the history sums to one."""
    kept = np.ones(len(levels[1].words), dtype=bool)
    kept[place] = False
    history = levels[1].parents[place]
    stay = kept & (levels[1].parents == history)
    unigrams, bigrams_ = select(levels, [np.ones(len(levels[0].words), dtype=bool), kept])
    backoffs = unigrams.backoffs.copy()
    backoffs[history] = (1 - levels[1].probs[stay].sum()) / (1 - levels[0].probs[levels[1].words[stay]].sum())
    parts = (unigrams.parents, unigrams.words, unigrams.suffixes, unigrams.counts, unigrams.probs, backoffs)
    return [Level(*parts), bigrams_]


def test_the_first_bigram_to_go_is_the_one_whose_loss_changes_the_model_least():
    sentences = random_sentences(num_sentences=60)
    levels = levels_of(sentences, order=2)
    costs = [math.expm1(relative_entropy(levels, without(levels, place))) for place in range(len(levels[1].words))]
    cheapest, second = np.argsort(costs)[:2]
    assert costs[cheapest] > 0
    assert len(prune(levels_of(sentences, order=2), threshold=costs[cheapest] * 0.999)[1].words) == len(costs)
    pruned = prune(levels_of(sentences, order=2), threshold=min(costs[cheapest] * 1.001, costs[second]))
    assert bigrams(levels) - bigrams(pruned) == {(levels[1].parents[cheapest], levels[1].words[cheapest])}
    np.testing.assert_allclose(distributions(pruned), distributions(without(levels, int(cheapest))), rtol=1e-9)


@pytest.mark.parametrize("threshold", [1e-5, 1e-4, 1e-3, 1e-2])
def test_all_that_go_cost_no_more_together_than_the_threshold_allows_each(threshold):
    sentences = random_sentences(num_sentences=400)
    levels = levels_of(sentences, order=2)
    pruned = prune(levels, threshold=threshold)
    gone = len(bigrams(levels)) - len(bigrams(pruned))
    assert relative_entropy(levels, pruned) <= gone * math.log1p(threshold) + 1e-12


def test_where_all_words_have_an_n_gram_what_is_cheap_alone_may_be_dear_together():
    """Behind `a`, all words but <unk> have bigrams: a to d of 0.1 each and </s>, which is likely. Any one of them can
    go for almost nothing, as what is left over is then its own; so can a to d together, but not all five."""
    unknown = 1e-9
    ones, none = np.ones(7), np.zeros(7, dtype=np.int32)
    counts = np.array([0, 1000, 1000, 1000, 1000, 1000, 1000], dtype=np.int32)
    unigrams = np.array([unknown, 0.0, 0.2, 0.2, 0.2, 0.2, 0.2 - unknown])
    words = np.array([2, 3, 4, 5, 6], dtype=np.int32)
    behind_a = np.array([0.6, 0.1, 0.1, 0.1, 0.1 - unknown])
    levels = [
        Level(none, np.arange(7, dtype=np.int32), none, counts, unigrams, ones),
        Level(np.full(5, 3, dtype=np.int32), words, words, words, behind_a, np.ones(5)),
    ]
    pruned = prune(levels, threshold=1e-5)
    assert bigrams(pruned) == {(3, 2)}
    np.testing.assert_allclose(pruned[0].backoffs[3], 0.5, rtol=1e-6)
    assert relative_entropy(levels, prune(levels, threshold=1e6)) > 0.05


@pytest.mark.parametrize("threshold", [1e-4, 1e-3, 1e-2])
def test_every_history_still_sums_to_one_and_beginnings_and_ends_stay(threshold):
    sentences = random_sentences(num_sentences=100)
    vocabulary = vocabulary_of(sentences)
    before = levels_of(sentences, order=4)
    pruned = prune(levels_of(sentences, order=4), threshold=threshold)
    assert [len(level.words) for level in pruned[1:]] < [len(level.words) for level in before[1:]]
    model = NgramModel(to_tables(pruned, vocabulary))
    probs = model.score_all(contexts_of(model, all_histories(vocabulary, length=3))).double().exp()
    np.testing.assert_allclose(probs.sum(dim=1), 1.0, atol=3e-6)
    ngrams, ngrams_before = spelled(pruned), spelled(before)
    for n in range(1, len(pruned)):
        assert {ngram[:-1] for ngram in ngrams[n]} <= ngrams[n - 1].keys()
        assert {ngram[1:] for ngram in ngrams[n]} <= ngrams[n - 1].keys()
        assert ngrams[n].items() <= ngrams_before[n].items()  # what stays has the probability that it had


def test_a_large_threshold_leaves_the_unigrams_and_a_tiny_one_everything():
    sentences = random_sentences()
    before = levels_of(sentences, order=3)
    alone = prune(levels_of(sentences, order=3), threshold=1e6)
    assert len(alone) == 1
    np.testing.assert_allclose(alone[0].backoffs, 1.0, rtol=1e-9)
    whole = prune(levels_of(sentences, order=3), threshold=1e-15)
    assert [len(level.words) for level in whole] == [len(level.words) for level in before]
    assert all((a.backoffs == b.backoffs).all() for a, b in zip(whole, before, strict=True))


def test_what_goes_does_not_depend_on_how_many_are_decided_on_at_a_time(monkeypatch):
    sentences = random_sentences()
    whole = prune(levels_of(sentences, order=3), threshold=1e-3)
    monkeypatch.setattr(pruning, "_CHUNK", 5)
    parts = prune(levels_of(sentences, order=3), threshold=1e-3)
    assert spelled(parts) == spelled(whole)
    assert len(whole[2].words) < len(levels_of(sentences, order=3)[2].words)
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_allclose(one.backoffs, other.backoffs, rtol=1e-9)
