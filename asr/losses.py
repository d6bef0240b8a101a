"""Losses: CTC, label-smoothed cross-entropy, and their weighted sum."""

# B utterances, T' encoder frames, U tokens, V vocabulary

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.devices import gpu_kernels
from asr.lattice_free import PhoneTrigrams, log_partition
from asr.nn.masks import valid_mask
from asr.tokenizer import BLANK_ID, EOS_ID

_KERNELS = "asr.ctc_kernels"
_IGNORED = -100  # what cross_entropy skips


@dataclass(slots=True, kw_only=True)
class LossConfig:
    """Weights of the joint loss: w·CTC + (1 - w)·attention (Watanabe et al. 2017, eq. 13).

    Attributes:
        ctc_weight: w, in [0, 1]; 1 trains CTC alone.
        label_smoothing: Probability mass spread evenly over the vocabulary in the attention loss, in [0, 1).
        intermediate_weight: Share of the CTC loss that comes from the encoder's intermediate layers, in [0, 1)
            (Lee & Watanabe 2021, eq. 7); 0 leaves them out.
        consistency_weight: Above 0, every utterance is masked twice, and this many times the divergence between the
            two CTC outputs is added (CR-CTC, Yao et al. 2024); it doubles the work of a step. 0 leaves it out.
        phone_weight: Above 0, this many times the loss of the phones that are spoken is added; 0 leaves it out.
        phone_mmi_share: Share of the phones' loss that is MMI, in [0, 1]; the rest is CTC (see `asr.lattice_free`).
            How frequent phones are comes from the training texts then, so searches with such a model need less of
            `decoding.prior_weight` and more of the language models.
    """

    ctc_weight: float = 0.3
    label_smoothing: float = 0.1
    intermediate_weight: float = 0.0
    consistency_weight: float = 0.0
    phone_weight: float = 0.0
    phone_mmi_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ctc_weight <= 1:
            raise ValueError(f"loss.ctc_weight is {self.ctc_weight}; it must be in [0, 1]")
        for name in ("label_smoothing", "intermediate_weight"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("consistency_weight", "phone_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.phone_mmi_share <= 1:
            raise ValueError(f"loss.phone_mmi_share is {self.phone_mmi_share}; it must be in [0, 1]")
        if self.phone_mmi_share and not self.phone_weight:
            raise ValueError(
                f"loss.phone_mmi_share is {self.phone_mmi_share}, but loss.phone_weight is 0, so it would change "
                "nothing; set loss.phone_weight too"
            )


@dataclass(slots=True)
class PhoneOutput:
    """What the second CTC head says, and what it should say.

    Attributes:
        log_probs: (B, T', 1 + P), float32.
        phones: (B, U') integers from 1 on.
        lengths: (B,) integers.
        trigrams: How likely sequences of phones are; needed with `LossConfig.phone_mmi_share`.
    """

    log_probs: Tensor
    phones: Tensor
    lengths: Tensor
    trigrams: PhoneTrigrams | None = None


@dataclass(slots=True)
class Loss:
    """What a model in training returns.

    Sums, not means: the trainer adds them up over the parts of an accumulated step and divides once, so a step of two
    half batches has the gradient of the whole batch.

    Attributes:
        total: Sum over the batch, differentiable, a scalar.
        count: What the sum is divided by (tokens).
        parts: The named parts of the total, detached sums over the same count, for the log.
    """

    total: Tensor
    count: int
    parts: dict[str, Tensor]


def ctc_loss(log_probs: Tensor, frame_lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
    """Negative log-likelihood of each transcript, summed over all alignments (Graves et al. 2006, eq. 8).

    Args:
        log_probs: (B, T', V) float32.
        frame_lengths: (B,) integers.
        tokens: (B, U) integers, without blank and end of sentence.
        token_lengths: (B,) integers.

    Returns:
        (B,) in nats; infinite where the frames cannot carry the tokens (see `min_ctc_frames`).
    """
    if log_probs.is_cuda and log_probs.dtype == torch.float32 and (kernels := gpu_kernels(_KERNELS)):
        losses: Tensor = kernels.CtcLoss.apply(log_probs, frame_lengths, tokens, token_lengths)
        return losses
    return F.ctc_loss(log_probs.transpose(0, 1), tokens, frame_lengths, token_lengths, blank=BLANK_ID, reduction="none")


def has_gpu_kernels() -> bool:
    """Whether the CTC loss of a GPU never waits for it; PyTorch's own does, so that CUDA graphs cannot record it."""
    return gpu_kernels(_KERNELS) is not None


def min_ctc_frames(tokens: list[int]) -> int:
    """The fewest frames that can carry these tokens: one each, and a blank between repeats."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def teacher_forcing(tokens: Tensor, token_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder reads and what it should answer.

    Args:
        tokens: (B, U) integers.
        token_lengths: (B,) integers.

    Returns:
        Inputs (B, U + 1), the start token and the transcript, and targets (B, U + 1), the transcript and the end of
        sentence; targets beyond it are ignored by `attention_loss`.
    """
    inputs = F.pad(tokens, (1, 0), value=EOS_ID)
    places = torch.arange(inputs.shape[1], device=tokens.device)
    targets = F.pad(tokens, (0, 1)).masked_fill(places == token_lengths[:, None], EOS_ID)
    return inputs, targets.masked_fill(places > token_lengths[:, None], _IGNORED)


def attention_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """Label-smoothed cross-entropy (Szegedy et al. 2016, section 7), a sum over all tokens of the batch.

    Args:
        logits: (B, U + 1, V).
        targets: (B, U + 1) of `teacher_forcing`.
        label_smoothing: In [0, 1).
    """
    return F.cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=_IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )


def consistency_loss(log_probs: Tensor, frame_lengths: Tensor) -> Tensor:
    """Divergence between the CTC outputs of two views of each utterance (CR-CTC, Yao et al. 2024, eq. 3 and 4).

    Each view learns from the other, which is held fixed: ½ Σ_t KL(sg(b_t) ‖ a_t) + ½ Σ_t KL(sg(a_t) ‖ b_t).

    Args:
        log_probs: CTC log-probabilities (2B, T', V), float32; rows b and B + b are views of one utterance.
        frame_lengths: (2B,) integers.

    Returns:
        (B,) in nats, a sum over frames.
    """
    others = torch.roll(log_probs, len(log_probs) // 2, dims=0).detach()
    divergence = F.kl_div(log_probs, others, reduction="none", log_target=True).sum(dim=-1)  # (2B, T')
    views = (divergence * valid_mask(frame_lengths, divergence.shape[1])).sum(dim=1)  # (2B,)
    return 0.5 * views.unflatten(0, (2, -1)).sum(dim=0)


def _competition(phones: PhoneOutput, frame_lengths: Tensor) -> Tensor:
    """What MMI adds to the phones' CTC loss, a sum over the batch."""
    assert phones.trigrams is not None
    competitors = log_partition(phones.log_probs, frame_lengths, phones.trigrams)
    return (competitors - phones.trigrams.log_prob(phones.phones, phones.lengths)).sum()


def joint_loss(
    config: LossConfig,
    *,
    log_probs: Tensor,
    intermediate_log_probs: list[Tensor],
    frame_lengths: Tensor,
    logits: Tensor | None,
    tokens: Tensor,
    token_lengths: Tensor,
    num_tokens: int,
    phones: PhoneOutput | None = None,
) -> Loss:
    """The weighted sum of CTC, intermediate CTC, attention and phone loss, in nats a token.

    Args:
        config: Weights.
        log_probs: CTC log-probabilities (B, T', V), float32.
        intermediate_log_probs: The same of the intermediate layers.
        frame_lengths: (B,) integers.
        logits: Decoder logits (B, U + 1, V), or None for CTC alone.
        tokens: (B, U) integers.
        token_lengths: (B,) integers.
        num_tokens: Sum of `token_lengths`, known on the host without a synchronisation.
        phones: Of the second CTC head; None without one.

    With `config.consistency_weight`, rows b and B + b of everything are two views of one utterance.
    """
    # All in one: a GPU goes through the frames of all at once.
    every = [log_probs, *(intermediate_log_probs if config.intermediate_weight else [])]
    together = torch.cat(every) if len(every) > 1 else log_probs
    repeated = (each.repeat(len(every), *[1] * (each.ndim - 1)) for each in (frame_lengths, tokens, token_lengths))
    ctc, *further = ctc_loss(together, *repeated).unflatten(0, (len(every), -1)).sum(dim=1).unbind()
    parts = {"ctc": ctc.detach()}
    if further:
        intermediate = torch.stack(further).mean()
        parts["intermediate_ctc"] = intermediate.detach()
        ctc = (1 - config.intermediate_weight) * ctc + config.intermediate_weight * intermediate
    total = ctc
    if config.consistency_weight:
        # The other sums go over both views; twice this one keeps their ratio when all is halved in the end.
        consistency = 2 * consistency_loss(log_probs, frame_lengths).sum()
        parts["consistency"] = consistency.detach()
        total = total + config.consistency_weight * consistency
    if logits is not None and config.ctc_weight < 1:
        _, targets = teacher_forcing(tokens, token_lengths)
        attention = attention_loss(logits, targets, label_smoothing=config.label_smoothing)
        parts["attention"] = attention.detach()
        total = config.ctc_weight * total + (1 - config.ctc_weight) * attention
    if phones is not None and config.phone_weight:
        phone_loss = ctc_loss(phones.log_probs, frame_lengths, phones.phones, phones.lengths).sum()
        parts["phone_ctc"] = phone_loss.detach()
        if config.phone_mmi_share:
            competition = _competition(phones, frame_lengths)
            parts["phone_mmi"] = (phone_loss + competition).detach()
            phone_loss = phone_loss + config.phone_mmi_share * competition
        if config.consistency_weight:
            consistency = 2 * consistency_loss(phones.log_probs, frame_lengths).sum()
            parts["phone_consistency"] = consistency.detach()
            phone_loss = phone_loss + config.consistency_weight * consistency
        total = total + config.phone_weight * phone_loss
    return Loss(total, max(1, num_tokens), parts)
