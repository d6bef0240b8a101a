"""From a batch of waveforms to hypotheses: the one door to all decoding modes."""

# B utterances, S samples, T' encoder frames, V vocabulary

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.decoding.ctc import greedy_search
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.joint import joint_search
from asr.nn.model import Recognizer

MODES = ("greedy", "joint")


@dataclass(slots=True, kw_only=True)
class DecodingConfig:
    """How to search.

    Attributes:
        mode: `greedy`, the best label of every CTC frame, or `joint`, beam search with CTC and attention together.
        beam_size: Hypotheses kept in every step of a beam search.
        ctc_weight: Weight of the CTC score in joint search, in (0, 1]; the decoder has the rest.
        num_candidates: Tokens of every hypothesis, the decoder's best, that joint search scores with CTC.
        length_bonus: Added to a hypothesis' score for every token.
    """

    mode: str = "greedy"
    beam_size: int = 10
    ctc_weight: float = 0.3
    num_candidates: int = 40
    length_bonus: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"decoding.mode is {self.mode!r}; choose one of {', '.join(MODES)}")
        for name in ("beam_size", "num_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"decoding.{name} is {getattr(self, name)}; it must be at least 1")
        if not math.isfinite(self.length_bonus):
            raise ValueError(f"decoding.length_bonus is {self.length_bonus}; it must be a finite number")
        if not 0 < self.ctc_weight <= 1:
            raise ValueError(f"decoding.ctc_weight is {self.ctc_weight}; it must be in (0, 1]")


class NotFiniteError(ValueError):
    """The model answers with NaN: its weights are damaged, or samples are so large that their power is infinite."""


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was found in one utterance.

    Attributes:
        hypotheses: Best first, at least one.
        log_probs: CTC log-probabilities without padding, (T', V), float32, for times and confidences.
    """

    hypotheses: list[Hypothesis]
    log_probs: Tensor

    @property
    def best(self) -> Hypothesis:
        """The first hypothesis."""
        return self.hypotheses[0]


@torch.inference_mode()
def recognize(model: Recognizer, waveforms: Tensor, lengths: Tensor, config: DecodingConfig) -> list[Recognition]:
    """Recognises a batch.

    Args:
        model: In eval mode.
        waveforms: (B, S) of the model's sample rate, on the model's device.
        lengths: (B,) integers, in samples.
        config: How to search.

    Returns:
        One result an utterance, in order.

    Raises:
        ValueError: If the mode needs a decoder and the model has none, or the model is in training mode.
        NotFiniteError: If the model's output is not a number.
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before recognition")
    encoded = model.encode(waveforms, lengths)
    log_probs = model.ctc_log_probs(encoded.frames)  # (B, T', V)
    if log_probs.isnan().any():
        raise NotFiniteError("the model's output is not a number (NaN); its weights or its input are damaged")
    each = [log_probs[row, :length] for row, length in enumerate(encoded.lengths.tolist())]
    if config.mode == "greedy":
        found = [[hypothesis] for hypothesis in greedy_search(log_probs, encoded.lengths)]
    else:
        if model.decoder is None:
            raise ValueError("decoding.mode is 'joint', but this model has no attention decoder; use mode greedy")
        found = [
            joint_search(
                model.decoder,
                encoded.frames[row, : len(own)],
                own,
                beam_size=config.beam_size,
                ctc_weight=config.ctc_weight,
                num_candidates=config.num_candidates,
                length_bonus=config.length_bonus,
            )
            for row, own in enumerate(each)
        ]
    return [Recognition(hypotheses, own) for hypotheses, own in zip(found, each, strict=True)]
