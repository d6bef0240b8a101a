"""Tuning of a search's weights: the fit on lists of hypotheses."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from random_ngrams import make_model

from asr import evaluate
from asr.confidence import UNCALIBRATED
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.lexicon_graph import LexiconGraph
from asr.decoding.rescore import combine
from asr.decoding.search import DecodingConfig, Encoding, FusionConfig, Recognition, Search, encode
from asr.pronunciation import Lexicon
from asr.tuning import tune


class ScriptedSearch(Search):
    """Ranks fixed hypotheses by the weights that its config has at the time."""

    def __init__(self, config: DecodingConfig, lists: list[list[Hypothesis]]) -> None:
        self.config = config
        self.model = tiny.make_model()
        self.lists = lists
        self.calls = 0

    def __call__(self, encoding: Encoding) -> list[Recognition]:
        self.calls += 1
        ctc_weight = self.config.ctc_weight
        weights = {"ctc": ctc_weight, "attention": 1 - ctc_weight}
        found = []
        for own in self.lists:
            scored = [combine(each, weights=weights, length_bonus=0.0) for each in own]
            ranked = sorted(scored, key=lambda each: -each.score)
            found.append(Recognition(ranked, torch.zeros(3, 6).log_softmax(dim=1)))
        return found


def test_tuning_finds_the_weights_that_choose_the_right_hypotheses() -> None:
    """CTC alone chooses wrongly, attention alone too; between them there is a range where both are right."""
    tokenizer = tiny.make_tokenizer()
    a, b = (tuple(tokenizer.encode(text)) for text in ("a", "b"))
    lists = [
        [Hypothesis(b, 0.0, {"ctc": -1.0, "attention": -6.0}), Hypothesis(a, 0.0, {"ctc": -3.0, "attention": -1.0})],
        [Hypothesis(a, 0.0, {"ctc": -9.0, "attention": -1.0}), Hypothesis(b, 0.0, {"ctc": -1.0, "attention": -3.0})],
    ]
    search = ScriptedSearch(DecodingConfig(mode="joint", ctc_weight=1.0), lists)
    encoding = Encoding(torch.zeros(2, 1, 1), torch.ones(2), torch.zeros(2, 1, 1))
    found = tune(search, [encoding], [["a", "b"]], tokenizer, num_trials=300)
    assert found.development["wer"] == found.development["oracle_wer"] == 0.0
    # Right where 2 w < 5 (1 - w) and 8 w > 2 (1 - w).
    assert 0.2 < found.weights["ctc_weight"] < 5 / 7
    assert search.config.ctc_weight == found.weights["ctc_weight"]
    assert search.calls == found.development["rounds"] + 1 >= 2


def test_tuning_a_real_search_does_not_make_it_worse_and_repeats_itself() -> None:
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    padded, lengths = tiny.pad([tiny.noise(length, seed=length) for length in (3000, 800, 2111)])
    encoding = encode(model, padded, lengths)
    config = DecodingConfig(mode="rescore", beam_size=6)
    texts = ["a b", "c", "b b a"]
    first = [tokenizer.decode(each.best.tokens) for each in Search(model, config)(encoding)]
    before = sum(max(len(own.split()), len(text.split())) for own, text in zip(first, texts, strict=True))
    found, again = (tune(Search(model, config), [encoding], [texts], tokenizer, num_trials=50) for _ in range(2))
    assert found == again
    assert found.development["oracle_wer"] <= found.development["wer"] <= before / 6
    assert set(found.weights) == {"ctc_weight", "length_bonus"}


def test_what_is_reported_is_the_error_rate_of_the_search_with_these_weights() -> None:
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    padded, lengths = tiny.pad([tiny.noise(length, seed=length) for length in (3000, 800, 2111)])
    encoding, texts = encode(model, padded, lengths), ["a b", "c", "b b a"]
    for seed in range(6):
        search = Search(model, DecodingConfig(mode="joint", beam_size=4, ctc_weight=1.0))
        found = tune(search, [encoding], [texts], tokenizer, seed=seed, num_trials=40)
        heard = [tokenizer.decode(each.best.tokens) for each in search(encoding)]
        pairs = dict(zip("xyz", texts, strict=True)), dict(zip("xyz", heard, strict=True))
        errors = evaluate.score(*pairs, num_draws=1)
        assert found.development["wer"] == pytest.approx(errors.wer)
        assert search.config.ctc_weight == found.weights["ctc_weight"] < 1  # else attention would have no part


def test_greedy_search_is_calibrated_alone() -> None:
    tokenizer = tiny.make_tokenizer()
    lists = [[Hypothesis(tuple(tokenizer.encode(text)), 0.0, {"ctc": 0.0})] for text in ("a", "b")]
    search = ScriptedSearch(DecodingConfig(), lists)
    encoding: Any = None
    found = tune(search, [encoding], [["a", "c"]], tokenizer)
    assert found.weights == {}
    assert found.calibration != UNCALIBRATED
    assert found.development["wer"] == 0.5
    assert search.calls == 1


def test_without_rounds_weights_stay_and_confidences_are_calibrated() -> None:
    model = tiny.make_model()
    config = DecodingConfig(mode="joint", beam_size=4, ctc_weight=0.35, length_bonus=0.2)
    padded, lengths = tiny.pad([tiny.noise(length, seed=length) for length in (3000, 800, 2111)])
    texts = ["a b", "c", "b ab"]
    found = tune(Search(model, config), [encode(model, padded, lengths)], [texts], tiny.make_tokenizer(), max_rounds=0)
    assert found.weights == {"length_bonus": 0.2, "ctc_weight": 0.35}
    assert found.development["rounds"] == 0 and found.development["calibration_error"] < 0.5


def test_an_empty_place_of_a_list_is_never_chosen() -> None:
    """Utterances with fewer hypotheses than others."""
    tokenizer = tiny.make_tokenizer()
    a, b = (tuple(tokenizer.encode(text)) for text in ("a", "b"))
    for mode, part in (("attention", "attention"), ("prefix_beam", "ctc")):
        lists: list[list[Hypothesis]] = [
            [Hypothesis(a, 0.0, {part: -1e6})],
            [Hypothesis(a, 0.0, {part: -1.0}), Hypothesis(b, 0.0, {part: -2.0})],
        ]
        search = ScriptedSearch(DecodingConfig(mode=mode), lists)
        encoding: Any = None
        found = tune(search, [encoding], [["a", "a"]], tokenizer, num_trials=20)
        assert found.development["wer"] == found.development["oracle_wer"] == 0.0


def test_the_weight_of_phones_is_tuned_with_the_others() -> None:
    """Phones alone choose wrongly, the decoder too; between them there is a range where both are right."""
    tokenizer = tiny.make_tokenizer()
    a, b = (tuple(tokenizer.encode(text)) for text in ("a", "b"))

    def made(tokens: tuple[int, ...], phones: float, attention: float) -> Hypothesis:
        return Hypothesis(tokens, 0.0, {"phones": phones, "attention": attention, "ctc": attention, "ngram": 0.0})

    class Words(ScriptedSearch):
        def __call__(self, encoding: Encoding) -> list[Recognition]:
            weight = self.config.phone_weight
            weights = {"phones": weight, "attention": (1 - weight) / 2, "ctc": (1 - weight) / 2}
            ranked = [
                sorted((combine(each, weights=weights, length_bonus=0.0) for each in own), key=lambda each: -each.score)
                for own in self.lists
            ]
            return [Recognition(own, torch.zeros(3, 6).log_softmax(dim=1)) for own in ranked]

    lists = [[made(b, -1.0, -6.0), made(a, -3.0, -1.0)], [made(a, -9.0, -1.0), made(b, -1.0, -3.0)]]
    lm = FusionConfig(ngram=Path("words.arpa"))
    search = Words(DecodingConfig(mode="lexicon", lexicon=Path("lexicon.txt"), phone_weight=0.9, lm=lm), lists)
    encoding = Encoding(torch.zeros(2, 1, 1), torch.ones(2), torch.zeros(2, 1, 1))
    found = tune(search, [encoding], [["a", "b"]], tokenizer, num_trials=300)
    assert found.development["wer"] == 0.0
    assert set(found.weights) == {"length_bonus", "ctc_weight", "phone_weight", "prior_weight", "lm.ngram_weight"}
    assert 0.2 < found.weights["phone_weight"] < 5 / 7


def test_without_a_decoder_the_weight_of_ctc_is_not_tuned() -> None:
    model = tiny.make_model(num_decoder_layers=0, phones=tiny.PHONES)
    lexicon = LexiconGraph(make_model(list(tiny.SPOKEN)), Lexicon(tiny.SPOKEN), tiny.PHONES, tiny.make_tokenizer())
    lm = FusionConfig(ngram=Path("words.arpa"))
    config = DecodingConfig(mode="lexicon", beam_size=8, lexicon=Path("lexicon.txt"), lm=lm)
    padded, lengths = tiny.pad([tiny.noise(length, seed=length) for length in (3000, 800, 2111)])
    search = Search(model, config, lexicon=lexicon)
    found = tune(search, [encode(model, padded, lengths)], [["a b", "c", "b ab"]], tiny.make_tokenizer(), num_trials=50)
    assert found.weights.keys() == {"length_bonus", "phone_weight", "prior_weight", "lm.ngram_weight"}
    assert search.config.ctc_weight == 1.0
