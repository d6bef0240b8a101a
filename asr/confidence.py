"""How sure recognition is of each word: evidence, its calibration on transcribed speech, and measures of both.

A word's evidence is what CTC says of its tokens, and how many of the other hypotheses have the same word in its place.
A calibration turns evidence into the probability that the word is right. Without one, a word's confidence is the
geometric mean of its tokens' CTC probabilities.
"""

# W words, N hypotheses of an utterance, K inputs of the logistic function

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from asr.decoding.hypothesis import Hypothesis, TokenSpan
from asr.evaluate import score
from asr.report import percent, table
from asr.text import normalize
from asr.tokenizer import Tokenizer

# Probabilities nearer to 0 or 1 than this count as this near, so that their logits stay finite.
_MARGIN = 1e-6
_TEMPERATURES = tuple(2.0 ** (exponent / 2) for exponent in range(-8, 17))  # 1/16 … 256
_RIDGE = 1e-3
_MAX_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class WordEvidence:
    """What speaks for one word of the best hypothesis.

    Attributes:
        mean: Geometric mean of the CTC probabilities of its tokens, in [0, 1].
        weakest: The smallest of them.
        gaps: Scores of all hypotheses below that of the best, itself included: natural logarithms, at most 0.
        agrees: Whether each of these hypotheses has the same word in this place.
    """

    mean: float
    weakest: float
    gaps: tuple[float, ...]
    agrees: tuple[bool, ...]


def word_evidence(
    hypotheses: Sequence[Hypothesis], spans: Sequence[TokenSpan], tokenizer: Tokenizer
) -> list[WordEvidence]:
    """Collects the evidence for the words of the best hypothesis.

    Args:
        hypotheses: Of one utterance, best first, at least one.
        spans: Of the best one's tokens, from `asr.decoding.hypothesis.align`.
        tokenizer: The model's.

    Returns:
        As many as `tokenizer.words` finds in the best hypothesis, in order.
    """
    best, *others = hypotheses
    # A hypothesis that the search knows to be impossible has no say.
    others = [other for other in others if math.isfinite(other.score)]
    gaps = (0.0, *(min(0.0, other.score - best.score) for other in others))
    words = tokenizer.decode(best.tokens).split()
    agreements = [[True] * len(words)]
    agreements += [_same_words(words, tokenizer.decode(other.tokens).split()) for other in others]
    evidence = []
    for positions, agrees in zip(tokenizer.words(best.tokens), zip(*agreements, strict=True), strict=True):
        probabilities = [max(spans[position].confidence, 1e-9) for position in positions]
        mean = math.exp(math.fsum(map(math.log, probabilities)) / len(probabilities))
        evidence.append(WordEvidence(mean=min(1.0, mean), weakest=min(probabilities), gaps=gaps, agrees=agrees))
    return evidence


def _same_words(words: Sequence[str], others: Sequence[str]) -> list[bool]:
    """For each word, whether an alignment by the fewest edits puts an equal one opposite."""
    same = [False] * len(words)
    for block in Levenshtein.opcodes(words, others):
        if block.tag == "equal":
            same[block.src_start : block.src_end] = [True] * (block.src_end - block.src_start)
    return same


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The probability that a word is right, a logistic function of its evidence.

    It is σ(bias + Σ weight · logit(p)) over three probabilities p: the evidence's mean, its weakest, and the agreement,
    which is the share of the hypotheses that have the word in the mass softmax(gaps / temperature) of all. Every part
    is a logit, so that the default, the mean alone with weight 1, is the geometric mean itself.

    Attributes:
        temperature: Above 0; the larger it is, the more even the say of the hypotheses.
        bias: A logit.
        mean_weight, weakest_weight, agreement_weight: Factors of the logits. Mean and weakest say nearly the same, so
            a fit may well give one of them a negative factor.
    """

    temperature: float = 1.0
    bias: float = 0.0
    mean_weight: float = 1.0
    weakest_weight: float = 0.0
    agreement_weight: float = 0.0

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            if not math.isfinite(value):
                raise ValueError(f"calibration: {part.name} is {value}; it must be a finite number")
        if self.temperature <= 0:
            raise ValueError(f"calibration: temperature is {self.temperature}; it must be above 0")

    def confidences(self, evidence: Sequence[WordEvidence]) -> list[float]:
        """The probability that each word is right, in (0, 1)."""
        if not evidence:
            return []
        weights = [self.mean_weight, self.weakest_weight, self.agreement_weight, self.bias]
        logits = _stack(evidence).inputs(self.temperature) @ torch.tensor(weights, dtype=torch.float64)  # (W)
        confidences: list[float] = logits.sigmoid().tolist()
        return confidences

    def to_dict(self) -> dict[str, float]:
        """The figures as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Rebuilds a calibration from what `to_dict` returned.

        Raises:
            ValueError: If a figure is missing, is none, or is unknown.
        """
        names = [part.name for part in fields(cls)]
        for name in names:
            if name not in state:
                raise ValueError(f"calibration: {name} is missing; calibrate the model again")
            if isinstance(state[name], bool) or not isinstance(state[name], int | float):
                raise ValueError(f"calibration: {name} is {state[name]!r}; it must be a number")
        for name in state:
            if name not in names:
                raise ValueError(f"calibration: {name!r} is unknown; expected {', '.join(names)}")
        return cls(**{name: float(state[name]) for name in names})


UNCALIBRATED = Calibration()


def fit_calibration(evidence: Sequence[WordEvidence], correct: Sequence[bool]) -> Calibration:
    """Finds the calibration that makes what is known of these words most probable.

    For every temperature of a grid the weights are fitted by Newton's method; the best temperature is kept. A slight
    pull towards no calibration (a ridge) keeps the weights finite where evidence tells right from wrong without fault,
    and leaves the agreement out where there is only one hypothesis.

    Args:
        evidence: Words of development speech, which the model was not trained on; a few thousand are plenty.
        correct: Whether each is right, from `correct_words`.

    Raises:
        ValueError: If the numbers differ, or not at least one word is right and one is wrong.
    """
    _check_lengths(len(evidence), correct, "words")
    num_correct = sum(correct)
    if not 0 < num_correct < len(correct):
        raise ValueError(
            f"{num_correct} of {len(correct)} words are right; a calibration needs right and wrong words, "
            "so use more or harder speech"
        )
    targets = torch.tensor(correct, dtype=torch.float64)
    stacked = _stack(evidence)
    best = UNCALIBRATED
    best_loss = math.inf
    for temperature in sorted(_TEMPERATURES, key=lambda value: abs(math.log(value))):  # 1 first, which wins a draw
        weights, loss = _fit_logistic(stacked.inputs(temperature), targets)
        if loss < best_loss - 1e-6:
            mean, weakest, agreement, bias = weights.tolist()
            best_loss = loss
            best = Calibration(
                temperature=temperature,
                bias=bias,
                mean_weight=mean,
                weakest_weight=weakest,
                agreement_weight=agreement,
            )
    return best


@dataclass(frozen=True, slots=True)
class _StackedEvidence:
    """The evidence of W words in float64.

    Attributes:
        own: Mean and weakest, (W, 2).
        gaps: (W, N), -inf where an utterance has fewer hypotheses.
        agrees: 0 or 1, (W, N).
    """

    own: Tensor
    gaps: Tensor
    agrees: Tensor

    def inputs(self, temperature: float) -> Tensor:
        """Logits of mean, weakest and agreement, and a one for the bias, (W, 4)."""
        agreement = ((self.gaps / temperature).softmax(dim=1) * self.agrees).sum(dim=1)  # (W)
        logits = torch.cat([self.own, agreement[:, None]], dim=1).clamp(_MARGIN, 1 - _MARGIN).logit()  # (W, 3)
        return torch.cat([logits, torch.ones_like(logits[:, :1])], dim=1)


def _stack(evidence: Sequence[WordEvidence]) -> _StackedEvidence:
    most = max(len(word.gaps) for word in evidence)
    gaps = [word.gaps + (-math.inf,) * (most - len(word.gaps)) for word in evidence]
    agrees = [word.agrees + (False,) * (most - len(word.agrees)) for word in evidence]
    own = [(word.mean, word.weakest) for word in evidence]
    return _StackedEvidence(*(torch.tensor(part, dtype=torch.float64) for part in (own, gaps, agrees)))


def _fit_logistic(inputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Minimises the logistic loss plus ridge/2·|weights - prior|² by Newton's method with step halving.

    Args:
        inputs: (W, K) float64.
        targets: (W,) float64, 0 or 1.

    Returns:
        Weights (K,) and the loss, in nats over all words.
    """
    prior = torch.zeros_like(inputs[0])
    prior[0] = 1.0
    identity = torch.eye(len(prior), dtype=inputs.dtype)

    def loss_of(weights: Tensor) -> float:
        cost = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ weights, targets, reduction="sum")
        return float(cost + _RIDGE / 2 * (weights - prior).square().sum())

    weights, loss = prior, loss_of(prior)
    for _ in range(_MAX_STEPS):
        probabilities = (inputs @ weights).sigmoid()
        gradient = inputs.T @ (probabilities - targets) + _RIDGE * (weights - prior)
        curvature = (inputs.T * (probabilities * (1 - probabilities))) @ inputs + _RIDGE * identity
        step = torch.linalg.solve(curvature, gradient)
        promised = float(gradient @ step)
        if promised < 1e-10 * (1 + loss):  # float64 cannot tell losses apart that are nearer
            break
        size = 1.0
        while (new_loss := loss_of(weights - size * step)) > loss - 1e-4 * size * promised and size > 1e-6:
            size /= 2
        weights, loss = weights - size * step, new_loss
    return weights, loss


def correct_words(reference: str, hypothesis: str) -> list[bool]:
    """Whether each word of a hypothesis is right, by the alignment that scores word errors.

    Args:
        reference: What was said.
        hypothesis: What was recognised; both are normalised as `asr.evaluate.score` does.

    Returns:
        One answer for each word between spaces of the hypothesis. A word that normalisation takes apart is right if all
        of its parts are, and one of which it leaves nothing is wrong, since nobody can have said it.
    """
    parts = [normalize(word).split() for word in hypothesis.split()]
    text = " ".join(part for word in parts for part in word)
    pairs = score({"": reference}, {"": text}, num_draws=1).alignments[0].pairs
    right = iter([said == recognised for said, recognised in pairs if recognised])
    answers = [[next(right) for _ in word] for word in parts]
    return [bool(answer) and all(answer) for answer in answers]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """The words whose confidence lies in [low, high); in the last bin, 1 is included.

    Attributes:
        low, high: Edges.
        count: Number of words, at least 1.
        mean_confidence: Of these words.
        accuracy: The share of them that is right.
    """

    low: float
    high: float
    count: int
    mean_confidence: float
    accuracy: float


def reliability(confidences: Sequence[float], correct: Sequence[bool], *, num_bins: int = 10) -> list[ReliabilityBin]:
    """Compares confidence with accuracy in bins of equal width; bins without words are left out.

    Args:
        confidences: In [0, 1].
        correct: Whether each word is right.
        num_bins: At least 1.

    Raises:
        ValueError: If there is no word, the numbers differ, a confidence is out of range, or `num_bins` is below 1.
    """
    _check_confidences(confidences, correct)
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; it must be at least 1")
    members: list[list[int]] = [[] for _ in range(num_bins)]
    for index, confidence in enumerate(confidences):
        members[min(int(confidence * num_bins), num_bins - 1)].append(index)
    return [
        ReliabilityBin(
            low=number / num_bins,
            high=(number + 1) / num_bins,
            count=len(own),
            mean_confidence=sum(confidences[index] for index in own) / len(own),
            accuracy=sum(correct[index] for index in own) / len(own),
        )
        for number, own in enumerate(members)
        if own
    ]


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], *, num_bins: int = 10) -> float:
    """Mean distance of accuracy and confidence over the bins of `reliability`, weighted by words (Naeini et al. 2015).

    Returns:
        A figure in [0, 1]; 0 is best.

    Raises:
        ValueError: As `reliability`.
    """
    bins = reliability(confidences, correct, num_bins=num_bins)
    return sum(part.count * abs(part.accuracy - part.mean_confidence) for part in bins) / len(confidences)


def normalized_cross_entropy(confidences: Sequence[float], correct: Sequence[bool]) -> float | None:
    """NIST's figure for confidences (Siu et al. 1997): how much they tell beyond the share of right words.

    With H the cross entropy of the answers when every word has the share of right words as its confidence, it is
    (H - cross entropy with the given confidences) / H. Confidences are kept 1e-6 away from 0 and 1.

    Returns:
        At most 1, which is best; 0 is no better than the share itself, below 0 is worse. None where all words are right
        or all are wrong, as H is 0 then.

    Raises:
        ValueError: If there is no word, the numbers differ, or a confidence is out of range.
    """
    _check_confidences(confidences, correct)
    share = sum(correct) / len(correct)
    if share in (0.0, 1.0):
        return None
    kept = [min(max(confidence, _MARGIN), 1 - _MARGIN) for confidence in confidences]
    given = -sum(math.log(value if right else 1 - value) for value, right in zip(kept, correct, strict=True))
    highest = -len(correct) * (share * math.log(share) + (1 - share) * math.log(1 - share))
    return (highest - given) / highest


def reliability_diagram(bins: Sequence[ReliabilityBin], *, width: int = 40) -> str:
    """The bins as a table with a bar of each one's accuracy, and a mark `|` where its mean confidence is.

    The bars end at their marks where confidences are true, beyond them where they are too low, before them where they
    are too high.

    Args:
        bins: From `reliability`.
        width: Columns of a bar at 100 %.
    """
    rows = [["confidence", "words", "mean", "right", "0 %" + "100 %".rjust(width - 2)]]
    for part in bins:
        bar = list("#" * round(part.accuracy * width) + " " * (width + 1 - round(part.accuracy * width)))
        bar[round(part.mean_confidence * width)] = "|"
        edges = f"{part.low:.2f} – {part.high:.2f}"
        rows.append([edges, str(part.count), percent(part.mean_confidence), percent(part.accuracy), "".join(bar)])
    return table(rows)


def _check_confidences(confidences: Sequence[float], correct: Sequence[bool]) -> None:
    _check_lengths(len(confidences), correct, "confidences")
    if not confidences:
        raise ValueError("there are no words to measure confidences of")
    for confidence in confidences:
        if not 0 <= confidence <= 1:
            raise ValueError(f"a confidence is {confidence}; it must be in [0, 1]")


def _check_lengths(count: int, correct: Sequence[bool], name: str) -> None:
    if count != len(correct):
        raise ValueError(f"{count} {name}, but {len(correct)} answers whether they are right; give one for each")
