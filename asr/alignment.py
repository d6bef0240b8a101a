"""Forced alignment: when each word of a known text is said in its recording."""

# S samples, T' encoder frames, V vocabulary

from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from asr import audio
from asr.audio import SegmentationConfig, segment_stream
from asr.checkpoint import LoadedModel
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.search import Recognition, encode
from asr.text import normalize
from asr.transcript import Segment, Transcript, make_segment, make_transcript


def align_file(loaded: LoadedModel, path: Path, text: str) -> Transcript:
    """Aligns a text with an audio file of any length.

    Args:
        loaded: The recogniser.
        path: Any audio that soundfile reads.
        text: What is said in it, as for `align_waveform`.

    Returns:
        A transcript of one segment.

    Raises:
        AudioError: If the file cannot be read.
        ValueError: As `align_waveform`; the file is named.
    """
    waveform = audio.load(path, sample_rate=loaded.sample_rate)
    try:
        segment = align_waveform(loaded, waveform, text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return make_transcript(str(path), duration_s=len(waveform) / loaded.sample_rate, segments=[segment])


def align_waveform(loaded: LoadedModel, waveform: Tensor, text: str) -> Segment:
    """Aligns a text with a waveform of any length.

    Args:
        loaded: The recogniser; its CTC output alone decides.
        waveform: (S,), S at least 1, of the model's sample rate.
        text: What is said in it, from beginning to end; it is normalised as training transcripts are.

    Returns:
        The words of the normalised text. Low confidences show where audio and text differ.

    Raises:
        ValueError: If the text has no words, has characters that the model's tokenizer lacks, or is too long for the
            audio.
        NotFiniteError: If the model's output is not a number.
    """
    tokens = _encode(loaded, text)
    log_probs = ctc_log_probs(loaded, waveform)  # (T', V)
    duration_s = len(waveform) / loaded.sample_rate
    # A repeated token needs a blank between.
    num_needed = len(tokens) + sum(first == second for first, second in pairwise(tokens))
    if num_needed > len(log_probs):
        raise ValueError(
            f"the text needs {num_needed} frames of {1000 * loaded.frame_s:g} ms at least, but the {duration_s:.2f} s "
            f"of audio have {len(log_probs)}; check that text and audio belong together"
        )
    recognition = Recognition([Hypothesis(tokens, 0.0)], log_probs)
    return make_segment(recognition, loaded.tokenizer, start_s=0.0, end_s=duration_s, frame_s=loaded.frame_s)


def ctc_log_probs(loaded: LoadedModel, waveform: Tensor, *, segmentation: SegmentationConfig | None = None) -> Tensor:
    """CTC log-probabilities of a waveform of any length; where it is long, it is heard segment by segment.

    Cuts lie on the grid of the frames, so that every frame t stands at t · `frame_s`, as if there were none.

    Args:
        loaded: The recogniser.
        waveform: (S,), S at least 1, of the model's sample rate.
        segmentation: Where to cut; by default as in transcription.

    Returns:
        (T', V) float32, on the CPU.

    Raises:
        NotFiniteError: If the model's output is not a number.
    """
    pieces = segment_stream([waveform], sample_rate=loaded.sample_rate, config=segmentation or SegmentationConfig())
    frame_samples = round(loaded.frame_s * loaded.sample_rate)
    ends = list(accumulate(map(len, pieces)))
    cuts = [0, *(end // frame_samples * frame_samples for end in ends[:-1]), len(waveform)]
    parts = []
    for start, end in pairwise(cuts):
        length = torch.tensor([end - start], device=loaded.device)
        log_probs = encode(loaded.model, waveform[None, start:end].to(loaded.device), length).log_probs[0]
        # The last frame stands where the next segment begins, and that one has it too.
        num_frames = (end - start) // frame_samples if end < len(waveform) else None
        parts.append(log_probs[:num_frames].cpu())
    return torch.cat(parts)


def _encode(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    """The tokens of a text as people write it."""
    words = normalize(text)
    if not words:
        raise ValueError("the text holds no words; write down what is said in the audio")
    try:
        return tuple(loaded.tokenizer.encode(words))
    except ValueError as error:
        unknown = str(error).partition(";")[0]  # what follows is the advice to normalise, which is done already
        raise ValueError(f"{unknown}; write it with the model's characters, numbers as words") from None
