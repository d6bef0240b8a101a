"""Lattice-free maximum mutual information (MMI) for CTC: what else the frames may say.

CTC raises the probability of what was said. MMI raises it against everything that could have been said instead,
weighed by how likely such sequences of phones are (Povey et al. 2016; with the alignments of CTC, Xiang & Ou 2019,
"CRF-based single-stage acoustic modeling with CTC topology"):

    log p(phones | frames) = log p_ctc(phones) + log p(phones) - log sum over all sequences of p_ctc(...)·p(...)

The sum goes over all sequences at once, with trigrams of phones as the language model.
"""

# B utterances, T' encoder frames, P phones, H = P + 1 symbols: 0 is the start or the end of a sentence

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from asr.devices import gpu_kernels
from asr.nn.masks import valid_mask
from asr.tokenizer import BLANK_ID


class PhoneTrigrams(nn.Module):
    """How likely a phone is behind two others, or the end of the sentence.

    Interpolated with bigrams and unigrams by what has not been seen yet (Witten & Bell 1991, method C), so that every
    sequence is possible.

    Args:
        sentences: Phones by number, 1 to P; what is learned from.
        num_phones: P.

    Raises:
        ValueError: If there are no sentences.
    """

    probabilities: Tensor

    def __init__(self, sentences: Iterable[Sequence[int]], *, num_phones: int) -> None:
        super().__init__()
        size = num_phones + 1
        rows = [[0, 0, *sentence, 0] for sentence in sentences]
        if not rows:
            raise ValueError("there are no sentences to learn trigrams of phones from")
        assert all(1 <= phone <= num_phones for row in rows for phone in row[2:-1])
        triples = torch.cat([torch.tensor(row).unfold(0, 3, 1) for row in rows])  # (all, 3)
        flat = (triples * torch.tensor([size * size, size, 1])).sum(dim=1)
        counts = torch.bincount(flat, minlength=size**3).view(size, size, size).double()
        lower = torch.full((size,), 1 / size, dtype=torch.float64)
        for each in (counts.sum(dim=(0, 1)), counts.sum(dim=0), counts):
            new = (each > 0).sum(dim=-1, keepdim=True)
            # A history that was never seen has nothing but the lower order.
            lower = (each + new.clamp(min=1) * lower) / (each.sum(dim=-1, keepdim=True) + new.clamp(min=1))
        self.register_buffer("probabilities", lower.float(), persistent=False)  # (H, H, H): of the last symbol

    def log_prob(self, phones: Tensor, lengths: Tensor) -> Tensor:
        """Log-probability of sequences with their end.

        Args:
            phones: (B, U) integers from 1 on.
            lengths: (B,) integers.

        Returns:
            (B,) in nats.
        """
        places = torch.arange(phones.shape[1] + 1, device=phones.device)
        phones = nn.functional.pad(phones, (2, 1))
        phones = phones.masked_fill(nn.functional.pad(places >= lengths[:, None], (2, 0)), 0)
        each = self.probabilities[phones[:, :-2], phones[:, 1:-1], phones[:, 2:]].log()  # (B, U + 1)
        return each.masked_fill(places > lengths[:, None], 0.0).sum(dim=1)


def log_partition(log_probs: Tensor, frame_lengths: Tensor, trigrams: PhoneTrigrams) -> Tensor:
    """The logarithm of the sum over all sequences of phones of p_ctc(sequence)·p(sequence).

    Time grows with P³ and the memory for a frame with P²: 29 kB an utterance for 59 phones, 1.3 MB for 400.

    Args:
        log_probs: Of blank and phones, (B, T', 1 + P), float32.
        frame_lengths: (B,) integers.
        trigrams: p(sequence).

    Returns:
        (B,) in nats.
    """
    sums: type[torch.autograd.Function] = _LogPartition
    is_for_kernels = log_probs.is_cuda and log_probs.dtype == torch.float32
    kernels = gpu_kernels("asr.lattice_free_kernels") if is_for_kernels else None
    if kernels is not None and len(trigrams.probabilities) <= kernels.MOST_SYMBOLS:
        sums = kernels.LogPartition
    result: Tensor = sums.apply(log_probs, frame_lengths, trigrams.probabilities)
    return result


class _LogPartition(torch.autograd.Function):
    """The forward-backward algorithm over pairs of phones (the last two that were said) and whether a frame is blank.

    States are (last phone, utterance, phone before), so that one batched product brings every phone that may follow.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, frame_lengths: Tensor, probabilities: Tensor) -> Tensor:
        """Returns the sums (B,) and keeps the forward variables."""
        with _all_digits(log_probs):
            forward, scales = _go_forward(log_probs, probabilities)
        ctx.save_for_backward(log_probs, forward, frame_lengths, probabilities)
        rows = torch.arange(len(log_probs), device=log_probs.device)
        last = forward[frame_lengths, :, :, rows].sum(dim=1)  # (B, last phone, phone before)
        ends = (last * probabilities[:, :, 0].T).sum(dim=(1, 2))
        valid = valid_mask(frame_lengths, log_probs.shape[1])
        return scales.where(valid, 1.0).log().sum(dim=1) + ends.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """How likely blank and each phone are in each frame, given all frames, times `grad` (B,)."""
        log_probs, forward, frame_lengths, probabilities = ctx.saved_tensors
        with _all_digits(log_probs):
            shares = _go_backward(log_probs, forward, frame_lengths, probabilities)
        valid = valid_mask(frame_lengths, log_probs.shape[1])[..., None]
        return (shares * grad[:, None, None]).where(valid, 0.0), None, None


def _all_digits(x: Tensor) -> torch.autocast:
    """Without autocast: sums of that many need more digits than 16 bits have."""
    return torch.autocast(x.device.type, enabled=False)


def _go_forward(log_probs: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Forward variables (T' + 1, 2, H, B, H), in blank frames and in frames of the last phone; they sum to one in every
    frame. And what they were divided by for that, (B, T')."""
    batch, num_frames, size = log_probs.shape
    others, again = _transitions(probabilities)
    blanks, phones = _emitted(log_probs)
    forward = log_probs.new_zeros(num_frames + 1, 2, size, batch, size)
    forward[0, 0, 0, :, 0] = 1.0  # before the first frame, nothing has been said
    scales = log_probs.new_ones(num_frames, batch, 1)
    for frame in range(num_frames):
        blank, phone = forward[frame].unbind()
        either = blank + phone
        entered = torch.bmm(either, others)  # (last, B, next)
        # The same phone again needs a blank in between.
        entered.diagonal(dim1=0, dim2=2).add_((blank * again).sum(dim=2).T)
        here = forward[frame + 1]
        torch.mul(either, blanks[frame], out=here[0])
        torch.mul(entered.permute(2, 1, 0).add_(phone), phones[frame], out=here[1])
        torch.sum(here, dim=(0, 1, 3), out=scales[frame, :, 0])
        here /= scales[frame]
    return forward, scales[..., 0].T


def _go_backward(log_probs: Tensor, forward: Tensor, frame_lengths: Tensor, probabilities: Tensor) -> Tensor:
    """The share of blank and of each phone in every frame, (B, T', H)."""
    batch, num_frames, size = log_probs.shape
    others, again = _transitions(probabilities)
    backwards = others.transpose(1, 2).contiguous()
    blanks, phones = _emitted(log_probs)
    is_last = ~valid_mask(frame_lengths - 1, num_frames).T[..., None]  # (T', B, 1), the last frame and those behind it
    ends = probabilities[:, :, 0].T[:, None].expand(2, -1, batch, -1)
    behind = ends.clone()  # what comes behind a frame, (2, last, B, before)
    shares = log_probs.new_empty(num_frames, 2, size, batch)
    for frame in reversed(range(num_frames)):
        behind = torch.where(is_last[frame], ends, behind)
        torch.sum(forward[frame + 1] * behind, dim=3, out=shares[frame])
        from_blank, from_phone = behind[0] * blanks[frame], behind[1] * phones[frame]
        back = torch.bmm(from_phone.permute(2, 1, 0), backwards).add_(from_blank)
        torch.addcmul(back, from_phone.diagonal(dim1=0, dim2=2).T[..., None], again, out=behind[0])
        torch.add(back, from_phone, out=behind[1])
        behind /= behind[0].amax(dim=(0, 2))[:, None]
    together = shares[:, 1]  # a phone's; nothing is said in blank frames
    together[:, BLANK_ID] = shares[:, 0].sum(dim=1)
    # In every frame the shares sum to one: dividing by their sum keeps more digits than by the likelihood.
    return (together / together.sum(dim=1, keepdim=True)).permute(2, 0, 1)


def _emitted(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of blank, (T', B, 1), and of the phones, (T', H, B, 1), where symbol 0 has none."""
    phones = log_probs.exp().permute(1, 2, 0)[..., None].contiguous()
    blanks = phones[:, BLANK_ID].clone()
    phones[:, BLANK_ID] = 0.0
    return blanks, phones


def _transitions(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Of a phone other than the last, (last, before, next), and of the last once more, (last, 1, before)."""
    others = probabilities.transpose(0, 1).contiguous()
    again = others.diagonal(dim1=0, dim2=2).T[:, None].clone()
    others.diagonal(dim1=0, dim2=2).zero_()
    others[:, :, 0] = 0.0
    return others, again
