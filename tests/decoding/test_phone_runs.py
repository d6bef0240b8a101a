"""Runs of frames: what is joined, what is left out as silence, and that padding and neighbours change nothing."""

import math
from itertools import groupby

import pytest
import torch
from torch import Tensor

from asr.decoding.phone_runs import find_runs, heard_runs, pad_rows

SIZE = 4  # blank and three phones


def make_frames(likeliest: list[int], *, seed: int = 0, top: float = 0.9) -> Tensor:
    """Probabilities (T', 4) in which the given phones are the likeliest."""
    noise = torch.rand(len(likeliest), SIZE, generator=torch.Generator().manual_seed(seed)) * 0.01
    rest = torch.full((len(likeliest), SIZE), (1 - top) / (SIZE - 1)) + noise
    rest[torch.arange(len(likeliest)), torch.tensor(likeliest)] = top
    return rest / rest.sum(dim=1, keepdim=True)


def expected(frames: Tensor) -> list[list[float]]:
    """The same as `find_runs` for one utterance, one frame after the other."""
    found, silence = [], 0
    for label, places in groupby(range(len(frames)), key=lambda place: int(frames[place].argmax())):
        own = frames[list(places)]
        mean = own.mean(dim=0)
        if label == 0 and mean[0] > 0.8:
            silence += len(own)
        else:
            found.append([*mean.tolist(), math.log(len(own)), math.log1p(silence)])
            silence = 0
    return found


@pytest.mark.parametrize("likeliest", [[1, 1, 2, 0, 0, 2, 3], [0, 0, 1, 0, 1, 0], [2], [3, 3, 3]])
def test_runs_are_means_of_frames_that_sound_alike(likeliest: list[int]) -> None:
    frames = make_frames(likeliest)
    found = find_runs(frames, torch.zeros(len(frames), dtype=torch.int64))
    torch.testing.assert_close(found.features, torch.tensor(expected(frames)))
    assert found.owners.tolist() == [0] * len(found.features)


def test_a_blank_that_may_be_a_phone_stays() -> None:
    frames = torch.cat([make_frames([1]), make_frames([0], top=0.5), make_frames([2])])
    found = find_runs(frames, torch.zeros(3, dtype=torch.int64))
    assert found.features[:, :SIZE].argmax(dim=1).tolist() == [1, 0, 2]
    assert found.frames.tolist() == [0, 1, 2]


def test_neighbouring_utterances_share_neither_runs_nor_silence() -> None:
    frames = make_frames([1, 0, 1, 1, 0, 2])
    found = find_runs(frames, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert found.owners.tolist() == [0, 1, 2]
    assert found.frames.tolist() == [0, 2, 5]
    assert found.features[:, -2].tolist() == pytest.approx([0.0, math.log(2), 0.0])
    assert found.features[:, -1].tolist() == pytest.approx([0.0, 0.0, math.log(2)])


def test_a_batch_of_n_equals_n_batches_of_one() -> None:
    rows = [
        make_frames(each, seed=seed).log() for seed, each in enumerate([[1, 1, 0, 2], [3], [0, 0], [2, 1, 3, 3, 3]])
    ]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.nan)
    together, sizes = heard_runs(padded, lengths)
    assert sizes.tolist() == [2, 1, 0, 3]
    for row, own, size in zip(rows, together, sizes.tolist(), strict=True):
        alone, (number,) = heard_runs(row[None], torch.tensor([len(row)]))
        assert number == size
        assert torch.equal(own[:size], alone[0, :size])
        assert not own[size:].any()


def test_nothing_but_silence_and_no_frames_at_all_have_no_runs() -> None:
    runs, lengths = heard_runs(make_frames([0, 0]).log()[None], torch.tensor([2]))
    assert (runs.shape, lengths.tolist()) == ((1, 1, SIZE + 2), [0])
    runs, lengths = heard_runs(torch.zeros(2, 3, SIZE), torch.tensor([0, 0]))
    assert (runs.shape, lengths.tolist()) == ((2, 1, SIZE + 2), [0, 0])


def test_rows_of_one_number_are_padded_too() -> None:
    padded, lengths = pad_rows(torch.tensor([5, 6, 7]), torch.tensor([0, 2, 2]), num_owners=3)
    assert padded.tolist() == [[5, 0], [0, 0], [6, 7]]
    assert lengths.tolist() == [1, 0, 2]
