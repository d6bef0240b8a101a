"""Confidences of words against cases by hand, and calibration against models that the data was drawn from."""

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jiwer
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.confidence import (
    UNCALIBRATED,
    Calibration,
    ReliabilityBin,
    WordEvidence,
    correct_words,
    expected_calibration_error,
    fit_calibration,
    normalized_cross_entropy,
    reliability,
    reliability_diagram,
    word_evidence,
)
from asr.decoding.hypothesis import Hypothesis, TokenSpan

TOKENIZER = tiny.make_tokenizer()  # blank, end of sentence, space, a, b and c
SENTENCE = st.lists(st.sampled_from(["a", "b", "ab", "don't"]), max_size=6).map(" ".join)


def hypothesis_of(text: str, score: float) -> Hypothesis:
    return Hypothesis(tuple(TOKENIZER.encode(text)), score)


def evidence_of(texts: Mapping[str, float], confidences: Sequence[float] | None = None) -> list[WordEvidence]:
    """Evidence of texts with their scores, the best first; a confidence for each of its characters, 1 by default."""
    hypotheses = [hypothesis_of(text, score) for text, score in texts.items()]
    confidences = confidences or [1.0] * len(hypotheses[0].tokens)
    spans = [TokenSpan(frame, frame + 1, confidence) for frame, confidence in enumerate(confidences)]
    return word_evidence(hypotheses, spans, TOKENIZER)


def word(*, mean: float = 0.5, weakest: float = 0.5, agreement: float | None = None) -> WordEvidence:
    """A word; with an agreement, one of two hypotheses that have this share of the mass at temperature 1."""
    if agreement is None:
        return WordEvidence(mean=mean, weakest=weakest, gaps=(0.0,), agrees=(True,))
    gap = math.log(1 - agreement) - math.log(agreement)
    return WordEvidence(mean=mean, weakest=weakest, gaps=(0.0, gap), agrees=(True, False))


# Evidence


def test_mean_and_weakest_by_hand() -> None:
    first, second = evidence_of({"ab c": -1.0}, [0.9, 0.4, 0.1, 0.7])
    assert (first.mean, first.weakest) == (pytest.approx(math.sqrt(0.9 * 0.4)), 0.4)  # the space belongs to no word
    assert (second.mean, second.weakest) == (pytest.approx(0.7), 0.7)
    assert first.gaps == (0.0,)
    assert first.agrees == (True,)


def test_agreement_by_hand() -> None:
    evidence = evidence_of({"a b c": -1.0, "a c": -2.0, "b b c": -3.0, "": -4.0, "a b c c": -5.5})
    assert all(each.gaps == (0, -1, -2, -3, -4.5) for each in evidence)
    assert [each.agrees for each in evidence] == [
        (True, True, False, False, True),
        (True, False, True, False, True),
        (True, True, True, False, True),
    ]


def test_hypotheses_of_no_probability_have_no_say() -> None:
    (evidence,) = evidence_of({"a": -1.0, "b": -math.inf, "c": -3.0})
    assert evidence.gaps == (0, -2)
    (evidence,) = evidence_of({"a": -math.inf, "b": -math.inf})
    assert evidence.gaps == (0,)


def test_no_words_have_no_evidence() -> None:
    assert evidence_of({"": -1.0, "a": -2.0}) == []
    assert UNCALIBRATED.confidences([]) == []


@given(st.lists(SENTENCE.map(lambda text: text.replace("don't", "c")), min_size=1, max_size=5, unique=True))
def test_agreements_are_the_words_that_jiwer_counts_as_hits(texts: list[str]) -> None:
    evidence = evidence_of({text: -float(place) for place, text in enumerate(texts)})
    assert len(evidence) == len(texts[0].split())
    for place, text in enumerate(texts):
        hits = jiwer.process_words(texts[0], text).hits
        assert sum(each.agrees[place] for each in evidence) == hits


# Calibration


def test_without_calibration_the_confidence_is_the_geometric_mean() -> None:
    evidence = evidence_of({"ab c": -1.0, "c": -1.5}, [0.9, 0.4, 0.1, 0.7])
    assert UNCALIBRATED.confidences(evidence) == pytest.approx([0.6, 0.7])
    certain, impossible = UNCALIBRATED.confidences([word(mean=1.0), word(mean=1e-9)])
    assert 1 > certain > 0.999998
    assert 0 < impossible < 2e-6


def test_a_calibrated_confidence_by_hand() -> None:
    calibration = Calibration(temperature=2.0, bias=0.5, mean_weight=0.8, weakest_weight=-0.1, agreement_weight=0.3)
    evidence = WordEvidence(mean=0.7, weakest=0.6, gaps=(0.0, -2.0, -4.0), agrees=(True, False, True))
    agreement = (1 + math.exp(-2)) / (1 + math.exp(-1) + math.exp(-2))
    logit = 0.5 + 0.8 * math.log(7 / 3) - 0.1 * math.log(6 / 4) + 0.3 * math.log(agreement / (1 - agreement))
    assert calibration.confidences([evidence]) == [pytest.approx(1 / (1 + math.exp(-logit)))]


def test_words_with_few_and_many_hypotheses_together_are_as_alone() -> None:
    calibration = Calibration(temperature=3.0, agreement_weight=1.0)
    words = [*evidence_of({"a b": -1.0, "a": -2.0, "b": -9.0}), word(mean=0.3), word(agreement=0.8)]
    alone = [calibration.confidences([each])[0] for each in words]
    assert calibration.confidences(words) == pytest.approx(alone, rel=1e-12)


def test_a_calibration_goes_through_json() -> None:
    calibration = Calibration(temperature=2.5, bias=-0.1, mean_weight=0.7, weakest_weight=0.2, agreement_weight=0.4)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "calibration: bias is None; it must be a number"),
        ({"bias": True}, "calibration: bias is True; it must be a number"),
        ({"bias": math.nan}, "calibration: bias is nan; it must be a finite number"),
        ({"temperature": 0}, "calibration: temperature is 0.0; it must be above 0"),
        ({"slope": 1.0}, "calibration: 'slope' is unknown; expected temperature, bias, mean_weight, weakest_weight, "),
    ],
)
def test_broken_calibrations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Calibration.from_dict({**UNCALIBRATED.to_dict(), **change})


def test_a_calibration_with_a_part_missing() -> None:
    state = UNCALIBRATED.to_dict()
    del state["mean_weight"]
    with pytest.raises(ValueError, match=r"^calibration: mean_weight is missing; calibrate the model again$"):
        Calibration.from_dict(state)


# Fitting


def simulated_words(num_words: int, *, seed: int, num_hypotheses: int = 5) -> list[WordEvidence]:
    choose = random.Random(seed)
    words = []
    for _ in range(num_words):
        weakest = choose.betavariate(2, 1)
        gaps = sorted((-choose.expovariate(0.2) for _ in range(num_hypotheses - 1)), reverse=True)
        agrees = [choose.random() < 0.6 for _ in gaps]
        mean = weakest + (1 - weakest) * choose.random()
        words.append(WordEvidence(mean=mean, weakest=weakest, gaps=(0.0, *gaps), agrees=(True, *agrees)))
    return words


def draw(probabilities: Sequence[float], *, seed: int) -> list[bool]:
    choose = random.Random(seed)
    return [choose.random() < probability for probability in probabilities]


def log_likelihood(calibration: Calibration, evidence: Sequence[WordEvidence], correct: Sequence[bool]) -> float:
    confidences = calibration.confidences(evidence)
    return sum(math.log(p if right else 1 - p) for p, right in zip(confidences, correct, strict=True))


def test_fitting_recovers_the_model_that_the_answers_were_drawn_from() -> None:
    true = Calibration(temperature=4.0, bias=-1.5, mean_weight=0.6, weakest_weight=0.4, agreement_weight=0.8)
    evidence = simulated_words(10_000, seed=1)
    fitted = fit_calibration(evidence, draw(true.confidences(evidence), seed=2))
    assert fitted.temperature == pytest.approx(4.0, rel=0.5)
    assert fitted.bias == pytest.approx(true.bias, abs=0.15)
    assert fitted.mean_weight == pytest.approx(true.mean_weight, abs=0.1)
    assert fitted.weakest_weight == pytest.approx(true.weakest_weight, abs=0.1)
    assert fitted.agreement_weight == pytest.approx(true.agreement_weight, abs=0.15)

    others = simulated_words(5_000, seed=3)
    answers = draw(true.confidences(others), seed=4)
    assert fitted.confidences(others) == pytest.approx(true.confidences(others), abs=0.06)
    assert expected_calibration_error(fitted.confidences(others), answers) < 0.02
    assert expected_calibration_error(UNCALIBRATED.confidences(others), answers) > 0.04


def test_no_change_of_a_fitted_figure_makes_the_answers_more_probable() -> None:
    evidence = simulated_words(300, seed=5)
    correct = draw([0.3 + 0.6 * each.weakest for each in evidence], seed=6)
    fitted = fit_calibration(evidence, correct)
    best = log_likelihood(fitted, evidence, correct)
    for name, figure in fitted.to_dict().items():
        for change in (0.05, -0.05) if name != "temperature" else (figure * 0.4, -figure * 0.3):
            moved = Calibration.from_dict({**fitted.to_dict(), name: figure + change})
            assert log_likelihood(moved, evidence, correct) < best, name


def test_one_hypothesis_alone_leaves_the_agreement_out() -> None:
    evidence = simulated_words(2_000, seed=7, num_hypotheses=1)
    true = Calibration(bias=1.0, mean_weight=0.5)
    fitted = fit_calibration(evidence, draw(true.confidences(evidence), seed=8))
    assert fitted.temperature == 1
    pairs = zip(fitted.confidences(evidence), true.confidences(evidence), strict=True)
    assert sum(abs(found - expected) for found, expected in pairs) / len(evidence) < 0.02


def test_evidence_that_tells_right_from_wrong_without_fault_gives_finite_figures() -> None:
    evidence = [word(mean=mean, weakest=mean) for mean in (0.1, 0.2, 0.3, 0.7, 0.8, 1.0)]
    fitted = fit_calibration(evidence, [False, False, False, True, True, True])
    confidences = fitted.confidences(evidence)
    assert max(confidences[:3]) < 0.1
    assert min(confidences[3:]) > 0.9
    assert all(abs(figure) < 100 for figure in fitted.to_dict().values())


@pytest.mark.parametrize(
    ("correct", "message"),
    [
        ([True, True], "2 of 2 words are right; a calibration needs right and wrong words, so use more or harder"),
        ([False, False], "0 of 2 words are right; a calibration needs right and wrong words"),
        ([True], "2 words, but 1 answers whether they are right; give one for each"),
    ],
)
def test_words_that_tell_nothing(correct: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        fit_calibration([word(), word()], correct)


# Right words


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat", "the cat sat", [True, True, True]),
        ("the cat sat", "a cat sat down", [False, True, True, False]),
        ("the cat sat", "cat", [True]),
        ("", "a b", [False, False]),
        ("the cat", "", []),
        ("The CAT!", "the cat", [True, True]),
        ("the cat", "the ' cat", [True, False, True]),
        ("well known cat", "well-known cat", [True, True]),
        ("well worn cat", "well-known cat", [False, True]),
    ],
)
def test_right_words_by_hand(reference: str, hypothesis: str, expected: list[bool]) -> None:
    assert correct_words(reference, hypothesis) == expected


@settings(max_examples=50)
@given(SENTENCE, SENTENCE)
def test_right_words_are_jiwers_hits(reference: str, hypothesis: str) -> None:
    right = correct_words(reference, hypothesis)
    assert len(right) == len(hypothesis.split())
    assert sum(right) == jiwer.process_words(reference, hypothesis).hits


@settings(max_examples=50)
@given(st.text("aé'́-. _\u2026\u00b4", max_size=12), st.text("aé'́-. _\u2026\u00b4", max_size=12))
def test_there_is_an_answer_for_every_word_whatever_it_is_made_of(reference: str, hypothesis: str) -> None:
    assert len(correct_words(reference, hypothesis)) == len(hypothesis.split())


# Measures


def test_reliability_by_hand() -> None:
    bins = reliability([0.0, 0.1, 0.5, 0.55, 0.99, 1.0], [False, True, True, False, True, True], num_bins=4)
    assert bins == [
        ReliabilityBin(low=0, high=0.25, count=2, mean_confidence=pytest.approx(0.05), accuracy=0.5),
        ReliabilityBin(low=0.5, high=0.75, count=2, mean_confidence=pytest.approx(0.525), accuracy=0.5),
        ReliabilityBin(low=0.75, high=1, count=2, mean_confidence=pytest.approx(0.995), accuracy=1),
    ]


def test_calibration_errors_by_hand() -> None:
    confidences, correct = [0.0, 0.1, 0.5, 0.55, 0.99, 1.0], [False, True, True, False, True, True]
    error = expected_calibration_error(confidences, correct, num_bins=4)
    assert error == pytest.approx((0.45 + 0.025 + 0.005) / 3)
    assert expected_calibration_error([0.95] * 10, [True] * 6 + [False] * 4) == pytest.approx(0.35)
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0


def test_confidences_that_are_true_have_no_calibration_error() -> None:
    choose = random.Random(9)
    confidences = [choose.random() for _ in range(20_000)]
    correct = draw(confidences, seed=10)
    assert expected_calibration_error(confidences, correct) < 0.015
    boasted = [math.sqrt(confidence) for confidence in confidences]
    assert expected_calibration_error(boasted, correct) == pytest.approx(2 / 3 - 1 / 2, abs=0.015)


def test_normalized_cross_entropy_by_hand() -> None:
    correct = [True, True, True, False]
    highest = -(3 * math.log2(3 / 4) + math.log2(1 / 4))
    given_bits = -(math.log2(0.9) + math.log2(0.8) + math.log2(0.6) + math.log2(1 - 0.3))
    measured = normalized_cross_entropy([0.9, 0.8, 0.6, 0.3], correct)
    assert measured == pytest.approx((highest - given_bits) / highest)
    assert normalized_cross_entropy([0.75] * 4, correct) == pytest.approx(0)
    assert normalized_cross_entropy([1.0, 1.0, 1.0, 0.0], correct) == pytest.approx(1, abs=1e-5)
    worst = normalized_cross_entropy([1.0] * 4, correct)
    assert worst is not None and math.isfinite(worst) and worst < -4
    assert normalized_cross_entropy([0.9, 0.8], [True, True]) is None
    assert normalized_cross_entropy([0.9, 0.8], [False, False]) is None


@pytest.mark.parametrize("measure", [reliability, expected_calibration_error, normalized_cross_entropy])
@pytest.mark.parametrize(
    ("confidences", "correct", "message"),
    [
        ([], [], "there are no words to measure confidences of"),
        ([0.5], [True, False], "1 confidences, but 2 answers whether they are right; give one for each"),
        ([0.5, 1.5], [True, False], "a confidence is 1.5; it must be in [0, 1]"),
        ([math.nan], [True], "a confidence is nan; it must be in [0, 1]"),
    ],
)
def test_confidences_that_cannot_be_measured(
    measure: Any, confidences: list[float], correct: list[bool], message: str
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        measure(confidences, correct)


def test_there_must_be_a_bin() -> None:
    with pytest.raises(ValueError, match=r"^num_bins is 0; it must be at least 1$"):
        reliability([0.5], [True], num_bins=0)


def test_a_reliability_diagram() -> None:
    bins = [
        ReliabilityBin(low=0, high=0.1, count=3, mean_confidence=0.04, accuracy=1 / 3),
        ReliabilityBin(low=0.5, high=0.6, count=12, mean_confidence=0.55, accuracy=0.5),
        ReliabilityBin(low=0.9, high=1, count=120, mean_confidence=0.999, accuracy=1),
    ]
    assert reliability_diagram(bins, width=20).splitlines() == [
        "confidence   words     mean     right  0 %             100 %",
        "0.00 – 0.10      3   4.00 %   33.33 %  #|#####",
        "0.50 – 0.60     12  55.00 %   50.00 %  ########## |",
        "0.90 – 1.00    120  99.90 %  100.00 %  ####################|",
    ]
