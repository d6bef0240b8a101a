"""CTC by brute force: all paths of one label a frame, written out. Slow on purpose, and independent of `asr`."""

import itertools
import math
from collections import defaultdict

from torch import Tensor

BLANK = 0


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    """Joins repeats and drops blanks."""
    return tuple(label for label, _ in itertools.groupby(path) if label != BLANK)


def path_probabilities(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every path through log-probabilities (T', V)."""
    frames = log_probs.double().exp().tolist()
    labels = range(log_probs.shape[1])
    return {
        path: math.prod(frame[label] for frame, label in zip(frames, path, strict=True))
        for path in itertools.product(labels, repeat=len(frames))
    }


def transcript_probabilities(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every transcript: the sum over the paths that collapse to it."""
    totals: dict[tuple[int, ...], float] = defaultdict(float)
    for path, probability in path_probabilities(log_probs).items():
        totals[collapse(path)] += probability
    return dict(totals)
