"""Forced alignment against the best of all paths."""

import pytest
import torch
from alignments import collapse, path_probabilities
from torch import Tensor

from asr.decoding.hypothesis import TokenSpan, align


def random_log_probs(num_frames: int, *, seed: int) -> Tensor:
    logits = torch.randn(num_frames, 4, generator=torch.Generator().manual_seed(seed))
    return logits.mul(2).log_softmax(dim=-1)


def spans_of(path: tuple[int, ...], log_probs: Tensor) -> list[TokenSpan]:
    """Runs of equal labels that are no blanks."""
    runs: list[list[int]] = []
    for frame, label in enumerate(path):
        if frame and path[frame - 1] == label:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return [
        TokenSpan(run[0], run[-1] + 1, float(log_probs[run, path[run[0]]].exp().mean())) for run in runs if path[run[0]]
    ]


@pytest.mark.parametrize("tokens", [(2,), (2, 3), (2, 2), (3, 3, 2), (2, 3, 2), (3, 3, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_the_alignment_is_the_most_probable_path(tokens: tuple[int, ...], seed: int) -> None:
    log_probs = random_log_probs(6, seed=seed)
    paths = path_probabilities(log_probs)
    best = max((path for path in paths if collapse(path) == tokens), key=lambda path: paths[path])
    spans = align(log_probs, tokens)
    expected = spans_of(best, log_probs)
    assert [(span.start, span.end) for span in spans] == [(span.start, span.end) for span in expected]
    for span, other in zip(spans, expected, strict=True):
        assert span.confidence == pytest.approx(other.confidence, abs=1e-6)
        assert 0 <= span.confidence <= 1


@pytest.mark.parametrize("tokens", [(2,), (2, 3, 2), (2, 2)])
def test_spans_are_in_order_and_do_not_overlap(tokens: tuple[int, ...]) -> None:
    spans = align(random_log_probs(40, seed=1), tokens)
    assert len(spans) == len(tokens)
    edges = [edge for span in spans for edge in (span.start, span.end)]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= 40
    assert all(span.start < span.end for span in spans)


def test_no_tokens_have_no_spans() -> None:
    assert align(random_log_probs(3, seed=0), ()) == []


def test_one_frame_carries_one_token() -> None:
    log_probs = random_log_probs(1, seed=0)
    assert align(log_probs, (3,)) == [TokenSpan(0, 1, pytest.approx(float(log_probs[0, 3].exp())))]


def test_more_tokens_than_frames_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^4 tokens cannot be aligned with 3 frames$"):
        align(random_log_probs(3, seed=0), (2, 3, 2, 3))


def test_repeats_without_room_for_the_blanks_between_lie_evenly_and_nothing_speaks_for_them() -> None:
    assert align(random_log_probs(3, seed=0), (2, 2, 3)) == [TokenSpan(frame, frame + 1, 0.0) for frame in range(3)]
    assert align(random_log_probs(4, seed=0), (2, 2, 2)) == [
        TokenSpan(0, 1, 0.0),
        TokenSpan(1, 2, 0.0),
        TokenSpan(2, 4, 0.0),
    ]
