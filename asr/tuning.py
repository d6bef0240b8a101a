"""Weights of a search, fitted on a development set from N-best lists: no encoder and no search runs for a trial."""

# K trials, M utterances, N hypotheses of an utterance, P weights

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from asr.confidence import (
    UNCALIBRATED,
    Calibration,
    WordEvidence,
    correct_words,
    expected_calibration_error,
    fit_calibration,
    word_evidence,
)
from asr.decoding.hypothesis import Hypothesis, align
from asr.decoding.search import DecodingConfig, Encoding, Recognition, Search
from asr.tokenizer import Tokenizer
from asr.variants import TunedSearch, with_weights


@dataclass(frozen=True, slots=True)
class _Knob:
    """One weight that is fitted: where it stands in the config, and its range.

    No range holds a weight with which a search leaves a scorer out: its hypotheses would lack that part of the score.
    """

    name: str
    low: float
    high: float


def _knobs(config: DecodingConfig, *, has_decoder: bool) -> list[_Knob]:
    """What can be fitted for a mode: what its score is made of."""
    if config.mode in ("greedy", "spell"):
        return []
    knobs = [_Knob("length_bonus", -1.0, 4.0)]
    if config.mode in ("joint", "rescore", "lexicon") and has_decoder:
        knobs.append(_Knob("ctc_weight", 0.02, 0.98))
    if config.mode == "lexicon":
        knobs.append(_Knob("phone_weight", 0.1, 0.98))
    if config.lm.ngram:
        knobs.append(_Knob("lm.ngram_weight", 0.01, 2.0))
    if config.lm.neural:
        knobs.append(_Knob("lm.neural_weight", 0.01, 2.0))
    if config.lm.internal_weight:
        knobs.append(_Knob("lm.internal_weight", 0.01, 1.0))
    return knobs


def tune(
    search: Search,
    encodings: Sequence[Encoding],
    references: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    *,
    seed: int = 1,
    num_trials: int = 2000,
    max_rounds: int = 3,
) -> TunedSearch:
    """Finds the weights with the lowest word error rate on a development set, and calibrates confidences under them.

    The set is searched with the present weights; then random trials, and trials around the best, choose anew among the
    hypotheses found so far by their parts. That is repeated with the new weights, the lists growing, until nothing
    changes: minimum error rate training (Och 2003) with a random search.

    Args:
        search: Its config holds the first weights, and those that were found in the end.
        encodings: The development set after the encoder.
        references: Texts of the utterances of each encoding.
        tokenizer: The recogniser's.
        seed: Of the trials.
        num_trials: Trials in each round.
        max_rounds: How often weights are fitted at most; the set is searched once more. With 0 they stay as they are.

    Greedy search has no weights, and spelling keeps its own; they are calibrated alone.

    Returns:
        Weights and calibration; measured are `wer`, of the search with these weights, `oracle_wer`, of the best
        hypotheses in all lists, which no weights can beat, `rounds`, how often weights were fitted, and
        `calibration_error`, of the confidences.
    """
    knobs = _knobs(search.config, has_decoder=search.has_decoder)
    if not search.has_decoder:
        search.config = replace(search.config, ctc_weight=1.0)  # as the search has it
    generator = torch.Generator().manual_seed(seed)
    texts = [text for own in references for text in own]
    num_words = max(1, sum(len(text.split()) for text in texts))
    lists: list[dict[tuple[int, ...], Hypothesis]] = [{} for _ in texts]
    given = [(knob, _value(search.config, knob.name)) for knob in knobs]
    weights = torch.tensor(
        [_within(knob, value) if max_rounds else value for knob, value in given], dtype=torch.float64
    )
    rounds: list[tuple[int, Tensor, list[Recognition]]] = []  # word errors of a search, its weights, what it found
    while len(rounds) <= max_rounds:
        search.config = with_weights(search.config, _named(knobs, weights))
        found = [each for encoding in encodings for each in search(encoding)]
        errors = sum(_count_errors(each.best, text, tokenizer) for each, text in zip(found, texts, strict=True))
        rounds.append((errors, weights, found))
        for own, recognition in zip(lists, found, strict=True):
            own.update({each.tokens: each for each in recognition.hypotheses})
        if not knobs or len(rounds) > max_rounds:
            break
        parts, counts = _tabulate(lists, texts, tokenizer, search.config)
        before, weights = weights, _fit(parts, counts, knobs, weights, search.config, generator, num_trials)
        if torch.equal(weights, before):
            break
    errors, weights, found = min(rounds, key=lambda each: each[0])  # the first of equals
    search.config = with_weights(search.config, _named(knobs, weights))
    oracle = sum(
        min(_count_errors(each, text, tokenizer) for each in own.values())
        for own, text in zip(lists, texts, strict=True)
    )
    calibration, calibration_error = _calibrate(found, texts, tokenizer)
    measured = {"wer": errors / num_words, "oracle_wer": oracle / num_words, "rounds": len(rounds) - 1}
    # What CTC says of phones sums over alignments, so that lists do not tell what another prior would do.
    # A speller's bonus is for its own tokens, which hypotheses no longer have.
    kept = {"lexicon": "prior_weight", "spell": "length_bonus"}.get(search.config.mode)
    fixed = {kept: getattr(search.config, kept)} if kept else {}
    return TunedSearch(
        weights=_named(knobs, weights) | fixed,
        calibration=calibration,
        development={**measured, "calibration_error": calibration_error},
    )


def _calibrate(
    found: Sequence[Recognition], references: Sequence[str], tokenizer: Tokenizer
) -> tuple[Calibration, float]:
    """A calibration of what a search found, and its error on the words that it was fitted on."""
    evidence: list[WordEvidence] = []
    correct: list[bool] = []
    for recognition, reference in zip(found, references, strict=True):
        tokens = recognition.best.tokens
        evidence += word_evidence(recognition.hypotheses, align(recognition.log_probs, tokens), tokenizer)
        correct += correct_words(reference, tokenizer.decode(tokens))
    if not evidence:
        return UNCALIBRATED, 0.0
    mixed = any(correct) and not all(correct)  # else there is nothing to tell apart
    calibration = fit_calibration(evidence, correct) if mixed else UNCALIBRATED
    return calibration, expected_calibration_error(calibration.confidences(evidence), correct)


def _count_errors(hypothesis: Hypothesis, reference: str, tokenizer: Tokenizer) -> int:
    """Word errors of one hypothesis."""
    return int(Levenshtein.distance(reference.split(), tokenizer.decode(hypothesis.tokens).split()))


def _within(knob: _Knob, value: float) -> float:
    return min(max(value, knob.low), knob.high)


def _value(config: DecodingConfig, name: str) -> float:
    owner, _, field = name.rpartition(".")
    return float(getattr(config.lm if owner else config, field))


def _named(knobs: Sequence[_Knob], values: Tensor) -> dict[str, float]:
    return {knob.name: round(value, 4) for knob, value in zip(knobs, values.tolist(), strict=True)}


# The parts of a score in the columns of a table; what no hypothesis of a search has stays zero.
_PARTS = ("ctc", "attention", "ngram", "neural", "hotwords", "internal", "phones")


def _tabulate(
    lists: Sequence[Mapping[tuple[int, ...], Hypothesis]],
    references: Sequence[str],
    tokenizer: Tokenizer,
    config: DecodingConfig,
) -> tuple[Tensor, Tensor]:
    """Parts of all hypotheses with their length behind them, (M, N, 8), and their word errors, (M, N) integers.

    Places without a hypothesis have the parts -inf and so are never chosen.
    """
    size = max(len(own) for own in lists)
    parts = torch.zeros(len(lists), size, len(_PARTS) + 1, dtype=torch.float64)
    parts[:, :, 0] = -math.inf if config.mode != "attention" else 0.0
    parts[:, :, 1] = -math.inf if config.mode == "attention" else 0.0
    errors = torch.full((len(lists), size), 10**9)
    there = {name for own in lists for each in own.values() for name in each.parts}
    for row, (own, reference) in enumerate(zip(lists, references, strict=True)):
        for column, each in enumerate(own.values()):
            scores = [each.parts[name] if name in there else 0.0 for name in _PARTS]
            parts[row, column] = torch.tensor([*scores, len(each.tokens)])
            errors[row, column] = _count_errors(each, reference, tokenizer)
    return parts, errors


def _fit(
    parts: Tensor,
    counts: Tensor,
    knobs: Sequence[_Knob],
    start: Tensor,
    config: DecodingConfig,
    generator: torch.Generator,
    num_trials: int,
) -> Tensor:
    """The trial with the fewest errors: half of them anywhere in range, half around the best so far."""
    low, high = (torch.tensor([getattr(knob, end) for knob in knobs], dtype=torch.float64) for end in ("low", "high"))
    best, fewest = start, _errors(parts, counts, _factors(knobs, start, config))
    for number in range(num_trials):
        draws = torch.rand(len(knobs), generator=generator, dtype=torch.float64)
        if number < num_trials // 2:
            trial = low + draws * (high - low)
        else:
            width = (high - low) * 0.2 * (1 - number / num_trials)
            trial = (best + (2 * draws - 1) * width).clamp(min=low, max=high)
        errors = _errors(parts, counts, _factors(knobs, trial, config))
        if errors < fewest:
            best, fewest = trial, errors
    return best


def _factors(knobs: Sequence[_Knob], values: Tensor, config: DecodingConfig) -> Tensor:
    """What each column of the table is multiplied by, (8,)."""
    trial = with_weights(config, _named(knobs, values))
    ctc = {"attention": 0.0, "prefix_beam": 1.0}.get(trial.mode, trial.ctc_weight)
    attention = 0.0 if trial.mode == "prefix_beam" else 1.0 - ctc
    phones = trial.phone_weight if trial.mode == "lexicon" else 0.0
    lm = trial.lm
    return torch.tensor(
        [
            (1 - phones) * ctc,
            (1 - phones) * attention,
            lm.ngram_weight,
            lm.neural_weight,
            1.0,
            -lm.internal_weight,
            phones,
            trial.length_bonus,
        ],
        dtype=torch.float64,
    )


def _errors(parts: Tensor, counts: Tensor, factors: Tensor) -> int:
    """Word errors of the hypotheses that these factors choose."""
    used = factors != 0  # a part of -inf must not meet a factor of 0
    chosen = (parts[:, :, used] @ factors[used]).argmax(dim=1, keepdim=True)
    return int(counts.gather(1, chosen).sum())
