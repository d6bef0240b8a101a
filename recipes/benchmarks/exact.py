"""Exact log-probabilities of a transcript in float64, the same for whatever search found it."""

# T' encoder frames, D width, V vocabulary

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.nn.decoder import TransformerDecoder
from asr.tokenizer import BLANK_ID, EOS_ID


def ctc_log_prob(log_probs: Tensor, tokens: tuple[int, ...]) -> float:
    """The CTC probability of a transcript, over all its alignments (Graves et al. 2006, eq. 8), as a logarithm.

    Args:
        log_probs: Of one utterance, (T', V).
        tokens: The transcript.

    Returns:
        -inf where the frames cannot carry the tokens.
    """
    log_probs = log_probs.double().cpu()[:, None]  # (T', 1, V)
    targets = torch.tensor([tokens], dtype=torch.int64)
    lengths = torch.tensor([len(log_probs)]), torch.tensor([len(tokens)])
    return -float(F.ctc_loss(log_probs, targets, *lengths, blank=BLANK_ID, reduction="sum"))


def attention_log_prob(decoder: TransformerDecoder, frames: Tensor, tokens: tuple[int, ...]) -> float:
    """The decoder's log-probability of a transcript with its end of sentence, by teacher forcing.

    Args:
        decoder: In eval mode and float64.
        frames: Of one utterance, (1, T', D).
        tokens: The transcript.
    """
    given = torch.tensor([[EOS_ID, *tokens]], device=frames.device)
    wanted = torch.tensor([[*tokens, EOS_ID]], device=frames.device)
    lengths = torch.tensor([frames.shape[1]], device=frames.device)
    log_probs = decoder(given, frames.double(), lengths).log_softmax(dim=-1)  # (1, U + 1, V)
    return float(log_probs.gather(2, wanted[:, :, None]).sum())
