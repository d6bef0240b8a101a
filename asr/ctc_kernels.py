"""The CTC loss on a GPU, without making the processor wait for it.

PyTorch's own loss copies lengths and offsets between processor and GPU, and each copy waits for all that was computed
before. Here everything stays on the GPU: a program for every utterance goes through its frames, all states of the
transcript side by side. Needs Triton, which comes with PyTorch for CUDA on Linux.
"""

# B utterances, T' encoder frames, U tokens, V vocabulary, S states (a power of two, at least 2U + 1)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr.tokenizer import BLANK_ID


class CtcLoss(torch.autograd.Function):
    """Negative log-likelihoods of transcripts and their gradient (Graves et al. 2006, equations 6 to 16).

    The arguments are those of `asr.losses.ctc_loss`, all on one GPU.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, frame_lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Returns the losses (B,) and keeps the forward variables (B, T', S)."""
        batch, num_frames, vocab_size = log_probs.shape
        num_states = triton.next_power_of_2(2 * tokens.shape[1] + 1)
        log_probs, tokens = log_probs.contiguous(), tokens.contiguous()
        alphas = log_probs.new_empty(batch, num_frames, num_states)
        losses = log_probs.new_empty(batch)
        sizes = num_frames, vocab_size, tokens.shape[1]
        with torch.cuda.device_of(log_probs):  # Triton launches on PyTorch's present device
            _forward_kernel[(batch,)](
                log_probs, tokens, frame_lengths, token_lengths, alphas, losses, *sizes,
                num_states=num_states, blank=BLANK_ID, num_warps=_num_warps(num_states),
            )  # fmt: skip
        ctx.save_for_backward(log_probs, frame_lengths, tokens, token_lengths, alphas)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Goes backwards through the frames: minus the share of every token in every frame, times `grad` (B,)."""
        log_probs, frame_lengths, tokens, token_lengths, alphas = ctx.saved_tensors
        batch, num_frames, num_states = alphas.shape
        betas = alphas.new_empty(batch, 2, num_states)
        grad_log_probs = torch.zeros_like(log_probs)
        sizes = num_frames, log_probs.shape[2], tokens.shape[1]
        with torch.cuda.device_of(log_probs):
            _backward_kernel[(batch,)](
                log_probs, tokens, frame_lengths, token_lengths, alphas, grad.contiguous(), betas, grad_log_probs,
                *sizes, num_states=num_states, blank=BLANK_ID, num_warps=_num_warps(num_states),
            )  # fmt: skip
        return grad_log_probs, None, None, None


def _num_warps(num_states: int) -> int:
    return min(8, max(1, num_states // 64))


@triton.jit
def _log_sum_exp(a, b, c):  # type: ignore[no-untyped-def]
    """Of three, elementwise; minus infinity where all are."""
    highest = tl.maximum(a, tl.maximum(b, c))
    safe = tl.where(highest == float("-inf"), 0.0, highest)
    return tl.log(tl.exp(a - safe) + tl.exp(b - safe) + tl.exp(c - safe)) + safe


# Sizes change from batch to batch; Triton would compile anew for those that are multiples of 16.
_SIZES = ["num_frames", "vocab_size", "max_tokens"]


@triton.jit(do_not_specialize=_SIZES)
def _forward_kernel(  # type: ignore[no-untyped-def]
    log_probs, tokens, frame_lengths, token_lengths, alphas, losses, num_frames, vocab_size, max_tokens,
    num_states: tl.constexpr, blank: tl.constexpr,
):  # fmt: skip
    """Forward variables and loss of one utterance; state 2u is the blank before token u, state 2u + 1 that token."""
    row = tl.program_id(0).to(tl.int64)
    log_probs += row * num_frames * vocab_size
    alphas += row * num_frames * num_states
    tokens += row * max_tokens
    length = tl.load(token_lengths + row).to(tl.int32)
    frames = tl.load(frame_lengths + row).to(tl.int32)
    state = tl.arange(0, num_states)
    exists = state < 2 * length + 1
    is_token = (state % 2 == 1) & exists
    token = tl.load(tokens + state // 2, mask=is_token, other=blank)
    has_one_before = is_token & (state >= 3)
    before = tl.load(tokens + state // 2 - 1, mask=has_one_before, other=blank)
    may_skip = has_one_before & (before != token)

    # Without a frame, nothing is emitted and nothing but the empty transcript is possible, with certainty.
    nothing = tl.where(state + length == 0, 0.0, float("-inf"))
    alpha = tl.load(log_probs + token, mask=exists & (state < 2) & (frames > 0), other=float("-inf"))
    alpha = tl.where(frames > 0, alpha, nothing)
    tl.store(alphas + state, alpha)
    frame = 1
    while frame < frames:
        emitted = tl.load(log_probs + frame * vocab_size + token, mask=exists, other=float("-inf"))
        tl.debug_barrier()  # all of the last frame is written
        last = alphas + (frame - 1) * num_states + state
        one_back = tl.load(last - 1, mask=exists & (state >= 1), other=float("-inf"))
        two_back = tl.load(last - 2, mask=may_skip, other=float("-inf"))
        alpha = _log_sum_exp(alpha, one_back, two_back) + emitted
        tl.store(alphas + frame * num_states + state, alpha)
        frame += 1

    at_end = tl.where(exists & (state >= 2 * length - 1), alpha, float("-inf"))
    highest = tl.max(at_end, axis=0)
    safe = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(losses + row, -(tl.log(tl.sum(tl.exp(at_end - safe), axis=0)) + safe))


@triton.jit(do_not_specialize=_SIZES)
def _backward_kernel(  # type: ignore[no-untyped-def]
    log_probs, tokens, frame_lengths, token_lengths, alphas, grad, betas, grad_log_probs,
    num_frames, vocab_size, max_tokens, num_states: tl.constexpr, blank: tl.constexpr,
):  # fmt: skip
    """Backward variables of one utterance, of two frames at a time, and what follows from them for the gradient."""
    row = tl.program_id(0).to(tl.int64)
    log_probs += row * num_frames * vocab_size
    grad_log_probs += row * num_frames * vocab_size
    alphas += row * num_frames * num_states
    betas += row * 2 * num_states
    tokens += row * max_tokens
    length = tl.load(token_lengths + row).to(tl.int32)
    frames = tl.load(frame_lengths + row).to(tl.int32)
    scale = -tl.load(grad + row)
    state = tl.arange(0, num_states)
    exists = state < 2 * length + 1
    is_token = (state % 2 == 1) & exists
    token = tl.load(tokens + state // 2, mask=is_token, other=blank)
    has_one_behind = is_token & (state + 2 < 2 * length + 1)
    behind = tl.load(tokens + state // 2 + 1, mask=has_one_behind, other=blank)
    may_skip = has_one_behind & (behind != token)

    beta = tl.where(exists & (state >= 2 * length - 1), 0.0, float("-inf"))  # what comes after the frame
    frame = frames - 1
    while frame >= 0:
        emitted = tl.load(log_probs + frame * vocab_size + token, mask=exists, other=float("-inf"))
        alpha = tl.load(alphas + frame * num_states + state)
        both = tl.where(exists, alpha + beta, float("-inf"))
        # In every frame the shares sum to one: dividing by their sum keeps more digits than by the likelihood.
        highest = tl.max(both, axis=0)
        share = tl.exp(both - highest)
        share = share * (scale / tl.sum(share, axis=0))
        tl.store(grad_log_probs + frame * vocab_size + blank, tl.sum(tl.where(is_token, 0.0, share), axis=0))
        tl.atomic_add(grad_log_probs + frame * vocab_size + token, share, mask=is_token)
        here = beta + emitted  # with the frame itself
        own = betas + (frame % 2) * num_states + state
        tl.store(own, here)
        tl.debug_barrier()  # all of this frame is written; what the other half held is no longer needed
        one_on = tl.load(own + 1, mask=exists & (state + 1 < 2 * length + 1), other=float("-inf"))
        two_on = tl.load(own + 2, mask=may_skip, other=float("-inf"))
        beta = _log_sum_exp(here, one_on, two_on)
        frame -= 1
