"""The trial of the largest batch before the first step: want of memory shows at once, and so does room to spare."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.training.interfaces import TrainingBatch, TrainingError

logger = logging.getLogger(__name__)

_FULL = 0.9  # of a GPU's memory; the rest is for fragments, and for what other programs of the machine take


@dataclass(frozen=True, slots=True)
class _Size:
    """How large a batch is, in words and in the unit of the setting that limits batches."""

    words: str
    padded: float
    batch_limit: str
    row_limit: str


def try_largest_batch(
    batch: TrainingBatch,
    *,
    compute: Callable[[TrainingBatch], object],
    reserve: Callable[[], list[Tensor]],
    device: torch.device,
    sample_rate: int | None,
) -> None:
    """Computes loss and gradient of the largest batch once; the random state is afterwards as it was.

    Args:
        batch: The batch that needs most memory.
        compute: Runs it forward and backward.
        reserve: Gives tensors as large as what the first step will add, such as the optimiser's moments.
        device: Where the model is.
        sample_rate: Of the audio, in Hz, or None where batches hold tokens.

    Raises:
        TrainingError: If memory does not suffice; the message names the settings that help.
    """
    size, is_cuda = _measure(batch, sample_rate), device.type == "cuda"
    states = torch.get_rng_state(), torch.cuda.get_rng_state(device) if is_cuda else None
    started = time.monotonic()
    try:
        reserved = reserve()
        before = _reset_peak(device)
        compute(batch)
        del reserved
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"not enough memory on {device} for the largest batch ({size.words}); lower loader.{size.batch_limit} and "
            f"raise trainer.accumulate by as much, or lower loader.{size.row_limit}"
        ) from error
    finally:
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1], device)
    room = _describe_room(size, before=before, device=device) if is_cuda else ""
    logger.info("the largest batch fits: %s, %.1f s a step%s", size.words, time.monotonic() - started, room)


def size_that_fills(share: float, *, size: float, before: int, peak: int, total: int) -> float:
    """How large a batch would fill a share of the memory, as memory grows with the size.

    Args:
        share: Of the memory, in (0, 1].
        size: Of the batch that was tried.
        before: Bytes in use before it.
        peak: Bytes in use with it, at the most.
        total: Bytes that there are.
    """
    return size * max(0.0, share * total - before) / max(1, peak - before)


def _measure(batch: TrainingBatch, sample_rate: int | None) -> _Size:
    rows = len(batch.lengths)
    padded = rows * batch.padded_length
    if sample_rate is None:
        words = f"{rows} sentences, {padded} tokens with padding"
        return _Size(words, padded, "max_batch_tokens", batch.row_limit)
    seconds = padded / sample_rate
    return _Size(f"{rows} utterances, {seconds:.0f} s with padding", seconds, "max_batch_s", batch.row_limit)


def _reset_peak(device: torch.device) -> int:
    """Bytes in use on a GPU, from which its peak is counted anew; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _describe_room(size: _Size, *, before: int, device: torch.device) -> str:
    # What is recorded keeps memory of its own, which is reserved even where nothing lies in it.
    peak, total = torch.cuda.max_memory_reserved(device), torch.cuda.mem_get_info(device)[1]
    full = size_that_fills(_FULL, size=size.padded, before=before, peak=peak, total=total)
    used = f"{peak / 1e9:.1f} of {total / 1e9:.1f} GB"
    return f", {used}; about loader.{size.batch_limit}={full:.0f} fills {_FULL:.0%} of it"


def _is_out_of_memory(error: Exception) -> bool:
    # On processors PyTorch raises a plain RuntimeError, known only by its text.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
