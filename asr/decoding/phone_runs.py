"""What was heard of phones, shortened: one vector for all frames in a row in which the same phone is the likeliest.

Words need some four phones each, an encoder gives ten frames a word and more. What reads phones (`asr.nn.speller`)
reads runs of frames, and so less than half as many; of silence it is told how long it was.
"""

# N frames of all utterances, K runs of all, B utterances, T' encoder frames, P phones, R runs of the longest utterance

from dataclasses import dataclass

import torch
from torch import Tensor

EXTRA_FEATURES = 2  # of a run, beside the probabilities: its length, and that of the silence before it
_SILENCE = 0.8  # a run with a mean probability of the blank above this is no run of its own


@dataclass(frozen=True, slots=True)
class PhoneRuns:
    """Runs of all utterances, one utterance behind the other.

    Attributes:
        features: (K, 1 + P + 2) float32: mean probabilities of blank and phones, the logarithm of the number of its
            frames, and of one more than the frames of silence before it.
        owners: The utterance of each, (K,).
        frames: The first frame of each, counted over all utterances, (K,).
    """

    features: Tensor
    owners: Tensor
    frames: Tensor


def find_runs(probabilities: Tensor, owners: Tensor) -> PhoneRuns:
    """The runs of frames in which the same phone is the likeliest; those of silence are left out.

    Args:
        probabilities: Of blank and phones, (N, 1 + P), N at least 1.
        owners: The utterance of each frame, (N,) integers, ascending.
    """
    likeliest = probabilities.argmax(dim=1)
    is_first = torch.ones(len(likeliest), dtype=torch.bool, device=likeliest.device)
    is_first[1:] = (likeliest[1:] != likeliest[:-1]) | (owners[1:] != owners[:-1])
    runs = is_first.cumsum(0) - 1  # (N,)
    frames = is_first.nonzero()[:, 0]  # (K,)
    own = owners[frames]
    sizes = torch.bincount(runs, minlength=len(frames)).float()
    sums = torch.zeros(len(frames), probabilities.shape[1], device=runs.device).index_add_(0, runs, probabilities)
    means = sums / sizes[:, None]
    silent = means[:, 0] > _SILENCE
    before = torch.zeros_like(sizes)
    before[1:] = (sizes * silent)[:-1] * (own[1:] == own[:-1])
    features = torch.cat([means, sizes.log()[:, None], before.log1p()[:, None]], dim=1)
    return PhoneRuns(features[~silent], own[~silent], frames[~silent])


def pad_rows(rows: Tensor, owners: Tensor, *, num_owners: int) -> tuple[Tensor, Tensor]:
    """Rows of all utterances as a batch.

    Args:
        rows: (K, …).
        owners: The utterance of each, (K,) integers, ascending.
        num_owners: B.

    Returns:
        (B, R, …), zero beyond a length, R at least 1, and the lengths (B,).
    """
    lengths = torch.bincount(owners, minlength=num_owners)
    starts = lengths.cumsum(0) - lengths
    padded = rows.new_zeros(num_owners, max(1, int(lengths.max())), *rows.shape[1:])
    padded[owners, torch.arange(len(owners), device=owners.device) - starts[owners]] = rows
    return padded, lengths


def heard_runs(log_probs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The runs of a batch.

    Args:
        log_probs: CTC log-probabilities of blank and phones, (B, T', 1 + P), float32.
        lengths: (B,) integers.

    Returns:
        Features (B, R, 1 + P + 2) of `PhoneRuns`, zero beyond a length, and lengths (B,), 0 where all is silent.
    """
    places = torch.arange(log_probs.shape[1], device=lengths.device)
    valid = places < lengths[:, None]
    owners = torch.arange(len(lengths), device=lengths.device)[:, None].expand_as(valid)[valid]
    if not len(owners):
        return log_probs.new_zeros(len(lengths), 1, log_probs.shape[2] + EXTRA_FEATURES), torch.zeros_like(lengths)
    found = find_runs(log_probs[valid].exp(), owners)
    return pad_rows(found.features, found.owners, num_owners=len(lengths))
