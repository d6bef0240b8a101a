"""The sum over all sequences of phones on a GPU: a program for every utterance goes through its frames.

`asr.lattice_free` starts some twenty kernels for every frame, which a GPU runs faster than they can be started. Here
it is one kernel forwards and one backwards. What is kept of a frame is 33 kB an utterance for 32 to 63 phones. Needs
Triton, which comes with PyTorch for CUDA on Linux.
"""

# B utterances, T' encoder frames, P phones, H = P + 1 symbols, 0 is the start or the end of a sentence; N is the power
# of two from H on. Tensors of pairs are indexed by the phone before and the last one, in this order.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# All pairs of phones of an utterance are in the registers of one program.
MOST_SYMBOLS = 64


class LogPartition(torch.autograd.Function):
    """The arguments are those of `asr.lattice_free.log_partition`, all on one GPU, with probabilities (H, H, H)."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, frame_lengths: Tensor, probabilities: Tensor) -> Tensor:
        """Returns the sums (B,) and keeps the forward variables, (B, T' + 1, 2, N, N)."""
        batch, num_frames, size = log_probs.shape
        log_probs = log_probs.contiguous()
        padded = max(16, triton.next_power_of_2(size))
        variables = log_probs.new_empty(batch, num_frames + 1, 2, padded, padded)
        sums = log_probs.new_empty(batch)
        with torch.cuda.device_of(log_probs):  # Triton launches on PyTorch's present device
            _forward_kernel[(batch,)](
                log_probs, frame_lengths, probabilities, _others(probabilities, padded), variables, sums, num_frames,
                size=size, padded=padded, num_warps=_num_warps(padded),
            )  # fmt: skip
        ctx.save_for_backward(log_probs, frame_lengths, probabilities, variables)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """How likely blank and each phone are in each frame, given all frames, times `grad` (B,)."""
        log_probs, frame_lengths, probabilities, variables = ctx.saved_tensors
        batch, num_frames, size = log_probs.shape
        padded = variables.shape[-1]
        by_next = _others(probabilities, padded).permute(2, 0, 1).contiguous()
        entered = log_probs.new_empty(batch, padded, padded)
        grad_log_probs = torch.zeros_like(log_probs)
        with torch.cuda.device_of(log_probs):
            _backward_kernel[(batch,)](
                log_probs, frame_lengths, probabilities, by_next, variables, grad.contiguous(), entered,
                grad_log_probs, num_frames, size=size, padded=padded, num_warps=_num_warps(padded),
            )  # fmt: skip
        return grad_log_probs, None, None


def _others(probabilities: Tensor, padded: int) -> Tensor:
    """Of a phone other than the last one, (N, N, N), padded with zeros: (before, last, next)."""
    others = nn.functional.pad(probabilities, (0, padded - len(probabilities)) * 3)
    others.diagonal(dim1=1, dim2=2).zero_()
    others[:, :, 0] = 0.0
    return others


def _num_warps(padded: int) -> int:
    return max(1, padded // 8)


@triton.jit
def _pairs(padded: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers along both sides of a square, (N, 1) and (1, N)."""
    return tl.arange(0, padded)[:, None], tl.arange(0, padded)[None, :]


# Frames change from batch to batch; Triton would compile anew for those that are multiples of 16.
@triton.jit(do_not_specialize=["num_frames"])
def _forward_kernel(  # type: ignore[no-untyped-def]
    log_probs, frame_lengths, probabilities, others, variables, sums, num_frames,
    size: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Forward variables of one utterance, in blank frames and in frames of the last phone: they sum to one."""
    row = tl.program_id(0).to(tl.int64)
    log_probs += row * num_frames * size
    variables += row * (num_frames + 1) * 2 * padded * padded
    frames = tl.load(frame_lengths + row).to(tl.int32)
    before, last = _pairs(padded)
    exists = (before < size) & (last < size)
    place = before * padded + last
    symbol = tl.arange(0, padded)
    # The last phone once more, (before, last); it needs a blank in between.
    again = tl.load(probabilities + before * size * size + last * size + last, mask=exists & (last > 0), other=0.0)

    blank = tl.where(place == 0, 1.0, 0.0)  # before the first frame, nothing has been said
    phone = tl.zeros([padded, padded], tl.float32)
    tl.store(variables + place, blank)
    tl.store(variables + padded * padded + place, phone)
    total = tl.sum(tl.zeros([padded], tl.float32))
    frame = 0
    while frame < frames:
        emitted = tl.exp(tl.load(log_probs + frame * size + symbol, mask=symbol < size, other=float("-inf")))
        of_blank = tl.sum(tl.where(symbol == 0, emitted, 0.0))
        tl.debug_barrier()  # all of the last frame is written
        present = variables + frame * 2 * padded * padded
        # Sums over what was said before the last phone, which falls out of sight; (last, next).
        repeated = tl.sum(blank * again, axis=0)
        entered = tl.where(before == last, repeated[None, :], 0.0)
        for oldest in range(size):
            # what ends with `oldest` and each phone
            ending = tl.load(present + oldest * padded + symbol)
            ending += tl.load(present + (padded + oldest) * padded + symbol)
            entered += ending[:, None] * tl.load(others + oldest * padded * padded + place)
        blank = (blank + phone) * of_blank
        phone = tl.where(last > 0, (entered + phone) * emitted[None, :], 0.0)
        scale = tl.sum(tl.sum(blank + phone, axis=0), axis=0)
        total += tl.log(scale)
        blank /= scale
        phone /= scale
        frame += 1
        tl.store(variables + frame * 2 * padded * padded + place, blank)
        tl.store(variables + (frame * 2 + 1) * padded * padded + place, phone)

    ends = tl.load(probabilities + before * size * size + last * size, mask=exists, other=0.0)
    tl.store(sums + row, total + tl.log(tl.sum(tl.sum((blank + phone) * ends, axis=0), axis=0)))


@triton.jit(do_not_specialize=["num_frames"])
def _backward_kernel(  # type: ignore[no-untyped-def]
    log_probs, frame_lengths, probabilities, by_next, variables, grad, entered, grad_log_probs, num_frames,
    size: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """What may come behind each frame of one utterance, and what follows from it for the gradient."""
    row = tl.program_id(0).to(tl.int64)
    log_probs += row * num_frames * size
    grad_log_probs += row * num_frames * size
    variables += row * (num_frames + 1) * 2 * padded * padded
    entered += row * padded * padded
    frames = tl.load(frame_lengths + row).to(tl.int32)
    factor = tl.load(grad + row)
    before, last = _pairs(padded)
    exists = (before < size) & (last < size)
    place = before * padded + last
    symbol = tl.arange(0, padded)
    again = tl.load(probabilities + before * size * size + last * size + last, mask=exists & (last > 0), other=0.0)

    ends = tl.load(probabilities + before * size * size + last * size, mask=exists, other=0.0)
    behind_blank = ends
    behind_phone = ends
    frame = frames - 1
    while frame >= 0:
        emitted = tl.exp(tl.load(log_probs + frame * size + symbol, mask=symbol < size, other=float("-inf")))
        of_blank = tl.sum(tl.where(symbol == 0, emitted, 0.0))
        here = variables + (frame + 1) * 2 * padded * padded
        blank = tl.load(here + place)
        phone = tl.load(here + padded * padded + place)
        shares = tl.sum(phone * behind_phone, axis=0)
        shares = tl.where(symbol == 0, tl.sum(tl.sum(blank * behind_blank, axis=0), axis=0), shares)
        # In every frame the shares sum to one: dividing by their sum keeps more digits than by the likelihood.
        shares = shares * (factor / tl.sum(shares, axis=0))
        tl.store(grad_log_probs + frame * size + symbol, shares, mask=symbol < size)

        from_blank = behind_blank * of_blank
        from_phone = tl.where(last > 0, behind_phone * emitted[None, :], 0.0)
        tl.debug_barrier()  # the frame before has read all of it
        tl.store(entered + last * padded + before, from_phone)  # (last, before)
        tl.debug_barrier()  # all of it is written
        back = from_blank
        for following in range(size):
            # from the pair of each phone and `following` on
            ending = tl.load(entered + following * padded + symbol)
            back += ending[None, :] * tl.load(by_next + following * padded * padded + place)
        same = tl.sum(tl.where(before == last, from_phone, 0.0), axis=0)
        behind_blank = back + same[None, :] * again
        behind_phone = back + from_phone
        highest = tl.max(tl.max(behind_blank, axis=0), axis=0)
        behind_blank /= highest
        behind_phone /= highest
        frame -= 1
