"""Band-limited resampling between any two rates, of whole waveforms and of blocks that arrive one by one.

Windowed-sinc interpolation (Smith and Gossett 1984; J. O. Smith, "Digital Audio Resampling Home Page"): the output at
time t is sum_i x[i] h(t - i) with h(u) = c sinc(c u) w(c u / Z), where c is the cut-off as a fraction of the input's
Nyquist frequency, Z the number of zero crossings to either side and w a Kaiser window.
"""

import functools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

# S samples, P phases of the filter, K taps of a phase

# Measured from 48 and 44.1 kHz to 16 kHz: tones up to 7 kHz are true to -58 dB (-100 dB up to 4 kHz) and aliases stay
# under -58 dB (under -95 dB from 8.5 kHz on), at 10 to 30 ms for 20 s of audio on one core. torchaudio's default
# (6 crossings, Hann) is up to twice as fast but loses 7 kHz to -15 dB.
_ZERO_CROSSINGS = 32
_ROLLOFF = 0.95
_KAISER_BETA = 9.0
# torchaudio's filter of a rate pair has (from/gcd) * (to/gcd) taps and more. Common pairs stay under this;
# 16,001 -> 16,000 Hz would need gigabytes.
_MAX_DENSE_TAPS = 1_000_000


def resample(waveform: Tensor, *, from_rate: int, to_rate: int) -> Tensor:
    """Resample with a windowed sinc.

    Args:
        waveform: (..., S) floating point, on any device.
        from_rate: Hz of `waveform`.
        to_rate: Hz of the result. Only the ratio of the two matters.

    Returns:
        (..., ceil(S * to_rate / from_rate)), of the same type and device; `waveform` itself where the rates are equal.

    Raises:
        ValueError: a rate is not positive.
    """
    ratio = _ratio(from_rate, to_rate)
    if ratio == 1 or waveform.shape[-1] == 0:
        return waveform
    if ratio.numerator * ratio.denominator > _MAX_DENSE_TAPS:
        return _resample_awkward(waveform, ratio)
    # The resampler views its input flat, which a transposed or sliced tensor does not allow.
    return _dense_resampler(ratio, waveform.device, waveform.dtype)(waveform.contiguous())


def resample_blocks(blocks: Iterator[np.ndarray], *, from_rate: int, to_rate: int) -> Iterator[Tensor]:
    """Resample consecutive blocks as if they were one waveform.

    A block is resampled together with enough of its neighbours that the filter never sees an edge which the whole
    waveform does not have.

    Args:
        blocks: (S,) float32, all but the last a multiple of from_rate / gcd(from_rate, to_rate) long.
        from_rate: Hz of the blocks.
        to_rate: Hz of the result.

    Yields:
        (S,) float32. Concatenated they are what `resample` makes of the concatenated blocks.

    Raises:
        ValueError: a rate is not positive.
    """
    ratio = _ratio(from_rate, to_rate)
    if ratio == 1:
        yield from map(torch.from_numpy, blocks)
        return
    # Context in whole steps of the filter, so that the phases of its outputs stay the same.
    context = math.ceil(_reach(ratio) / ratio.numerator) * ratio.numerator
    left = np.zeros(0, dtype=np.float32)
    current = next(blocks, None)
    while current is not None:
        following = next(blocks, None)
        # A block shorter than the context joins the one before it, until there is enough on the right.
        while following is not None and len(following) < context:
            current, following = np.concatenate([current, following]), next(blocks, None)
        right = left[:0] if following is None else following[:context]
        together = torch.from_numpy(np.concatenate([left, current, right]))
        resampled = resample(together, from_rate=ratio.numerator, to_rate=ratio.denominator)
        first = len(left) // ratio.numerator * ratio.denominator
        last = len(resampled)
        if following is not None:
            last = (len(left) + len(current)) // ratio.numerator * ratio.denominator
        yield resampled[first:last].clone()
        left, current = np.concatenate([left, current])[-context:], following


def _ratio(from_rate: int, to_rate: int) -> Fraction:
    """Input samples per output sample."""
    if from_rate <= 0 or to_rate <= 0:
        raise ValueError(f"cannot resample from {from_rate} Hz to {to_rate} Hz; both rates must be positive")
    return Fraction(from_rate, to_rate)


def _cutoff(ratio: Fraction) -> float:
    """Cut-off frequency as a fraction of the input's Nyquist frequency."""
    return _ROLLOFF * min(1.0, 1 / float(ratio))


def _reach(ratio: Fraction) -> int:
    """Input samples to either side that an output sample depends on, and one to spare."""
    return math.ceil(_ZERO_CROSSINGS / _cutoff(ratio)) + 1


@functools.lru_cache(maxsize=16)
def _dense_resampler(ratio: Fraction, device: torch.device, dtype: torch.dtype) -> Any:
    """torchaudio's resampler of a rate pair, kept because its filter costs more to make than to apply."""
    # torchaudio is imported here because nothing else needs it and it adds to the start-up time.
    from torchaudio.transforms import Resample

    return Resample(
        ratio.numerator,
        ratio.denominator,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=_ZERO_CROSSINGS,
        rolloff=_ROLLOFF,
        beta=_KAISER_BETA,
    ).to(device, dtype)


def _resample_awkward(waveform: Tensor, ratio: Fraction) -> Tensor:
    """The same filter for rates with hardly a common divisor, with only the taps that are not zero.

    Slower than the dense one (300 to 700 times faster than real time for rates up to 44 kHz), but its table has only
    P * K entries, a few megabytes.
    """
    step, num_phases = ratio.numerator, ratio.denominator
    filters = _sparse_filters(ratio).to(waveform.device, waveform.dtype)  # (P, K)
    num_outputs = -(-waveform.shape[-1] * num_phases // step)
    reach = _reach(ratio)
    padded = torch.nn.functional.pad(waveform, (reach, reach + step))
    windows = padded.unfold(-1, filters.shape[1], 1)  # (..., S', K), a view
    starts = torch.arange(num_phases, device=waveform.device) * step // num_phases  # (P,)
    parts = [
        (windows[..., starts[: num_outputs - done] + done // num_phases * step, :] * filters[: num_outputs - done]).sum(
            -1
        )
        for done in range(0, num_outputs, num_phases)
    ]
    return torch.cat(parts, dim=-1)


@functools.lru_cache(maxsize=4)
def _sparse_filters(ratio: Fraction) -> Tensor:
    """(P, K) float32: row p gives output p from the K = 2 * reach + 1 inputs around its time."""
    reach, cutoff = _reach(ratio), _cutoff(ratio)
    phases = torch.arange(ratio.denominator, dtype=torch.int64)
    fractions = (phases * ratio.numerator % ratio.denominator).double() / ratio.denominator  # (P,)
    taps = torch.arange(-reach, reach + 1, dtype=torch.float64)  # (K,)
    time = cutoff * (fractions[:, None] - taps)  # (P, K), in zero crossings
    squared = (1 - (time / _ZERO_CROSSINGS).square()).clamp_min(0)
    window = torch.special.i0(_KAISER_BETA * squared.sqrt()) / torch.special.i0(torch.tensor(_KAISER_BETA))
    filters = cutoff * torch.sinc(time) * window
    return torch.where(time.abs() < _ZERO_CROSSINGS, filters, 0.0).float()
