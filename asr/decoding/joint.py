"""One-pass beam search with CTC and attention scores together (Watanabe et al. 2017, section IV-B)."""

# N running hypotheses, K candidates a hypothesis, T' encoder frames, D width, V vocabulary

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.decoding.ctc import PrefixScorer, PrefixState
from asr.decoding.hypothesis import Hypothesis
from asr.nn.decoder import DecoderState, TransformerDecoder
from asr.tokenizer import BLANK_ID, EOS_ID


@dataclass(slots=True)
class _Beam:
    """The running hypotheses, best first."""

    tokens: list[tuple[int, ...]]
    attention: Tensor  # (N,) float64, sum of the decoder's log-probabilities
    decoder: DecoderState
    prefixes: PrefixState

    def last_tokens(self, device: torch.device) -> Tensor:
        return torch.tensor([tokens[-1] if tokens else EOS_ID for tokens in self.tokens], device=device)


def joint_search(
    decoder: TransformerDecoder,
    frames: Tensor,
    log_probs: Tensor,
    *,
    beam_size: int,
    ctc_weight: float,
    num_candidates: int,
    length_bonus: float = 0.0,
) -> list[Hypothesis]:
    """Searches the transcript with the best w·log p_ctc + (1 - w)·log p_attention + bonus·length.

    Every step extends each running hypothesis by the decoder's best candidates, scores those with CTC as prefixes, and
    keeps the best. The search ends when no running hypothesis can overtake the best finished one any more: both scores
    only fall with every token, so that is exact but for the pruning of the beam.

    Args:
        decoder: The attention decoder, in eval mode.
        frames: Encoder frames of one utterance without padding, (T', D).
        log_probs: CTC log-probabilities of the same, (T', V).
        beam_size: Hypotheses kept in every step.
        ctc_weight: w, in (0, 1].
        num_candidates: Tokens of a hypothesis that CTC scores; V - 1 tries all. End of sentence is always tried.
        length_bonus: Added for every token.

    Returns:
        Finished hypotheses, best first, at most `beam_size`.
    """
    device = frames.device
    num_frames, vocab_size = log_probs.shape
    scorer = PrefixScorer(log_probs)
    lengths = torch.tensor([num_frames], device=device)
    nothing = torch.zeros(1, device=device, dtype=torch.float64)
    beam = _Beam([()], nothing, decoder.start(frames[None], lengths), scorer.start())
    finished: list[Hypothesis] = []
    num_candidates = min(num_candidates, vocab_size - 2)
    for length in range(num_frames + 1):  # CTC cannot carry more tokens than frames
        last = beam.last_tokens(device)
        next_log_probs, decoder_state = decoder.step(last, beam.decoder)  # (N, V)
        candidates = _candidates(next_log_probs, num_candidates)  # (N, K)
        prefixes = scorer.extend(beam.prefixes, last, candidates)
        attention = beam.attention[:, None] + next_log_probs.double().gather(1, candidates)  # (N, K)
        ctc = prefixes.scores.view_as(attention)
        bonus = length_bonus * (length + (candidates != EOS_ID))
        scores = ctc_weight * ctc + (1 - ctc_weight) * attention + bonus
        # Candidate 0 is the end of sentence. One copy to the host for all rows.
        ended = torch.stack([scores[:, 0], ctc[:, 0], attention[:, 0]], dim=1).tolist()
        finished += [
            Hypothesis(tokens, total, {"ctc": ctc_score, "attention": attention_score})
            for tokens, (total, ctc_score, attention_score) in zip(beam.tokens, ended, strict=True)
            if math.isfinite(total)
        ]
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beam_size]

        running = scores[:, 1:].flatten()
        best, chosen = running.topk(min(beam_size, running.numel()))
        chosen = chosen[best.isfinite()]  # CTC cannot emit the others in these frames
        if not len(chosen):
            break
        reachable = float(best[0]) + max(0.0, length_bonus) * (num_frames - length - 1)
        if reachable <= finished[0].score:
            break
        rows, columns = chosen // num_candidates, chosen % num_candidates + 1
        flat = rows * candidates.shape[1] + columns
        new_tokens = candidates.flatten()[flat].tolist()
        beam = _Beam(
            [(*beam.tokens[row], token) for row, token in zip(rows.tolist(), new_tokens, strict=True)],
            attention.flatten()[flat],
            decoder_state.select(rows),
            prefixes.select(flat),
        )
    return finished


def _candidates(next_log_probs: Tensor, num_candidates: int) -> Tensor:
    """End of sentence first, then the decoder's best tokens, blank never; integers (N, 1 + K)."""
    allowed = next_log_probs.clone()
    allowed[:, [BLANK_ID, EOS_ID]] = -torch.inf
    best = allowed.topk(num_candidates, dim=1).indices
    return torch.cat([torch.full_like(best[:, :1], EOS_ID), best], dim=1)
