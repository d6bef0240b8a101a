"""Times searches side by side: the same frames for all, taken in turns, repeated after a warm-up."""

# B utterances, T' encoder frames, D width, V vocabulary, N hypotheses of an utterance

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.checkpoint import LoadedModel
from asr.data.dataset import load_utterance
from asr.data.manifest import Utterance
from asr.nn.model import Recognizer
from asr.tokenizer import EOS_ID, Tokenizer

Tokens = tuple[int, ...]

TOLERANCE = 1e-4  # what a search in float32 cannot tell apart


class Skipped(Exception):  # noqa: N818 - nothing is wrong
    """Why a contender does not take part: it is not installed, or needs another device."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded utterances.

    Attributes:
        frames: (B, T', D).
        lengths: (B,) integers.
        log_probs: CTC log-probabilities (B, T', V) in which the end of sentence, no token of CTC, has no share: some
            peers know no such token, and so all see the same distribution.
    """

    frames: Tensor
    lengths: Tensor
    log_probs: Tensor

    def alone(self) -> Iterator["Batch"]:
        """Each utterance as a batch of its own, without padding."""
        for row, length in enumerate(self.lengths.tolist()):
            one = slice(row, row + 1)
            yield Batch(self.frames[one, :length], self.lengths[one], self.log_probs[one, :length])


@dataclass(slots=True, kw_only=True)
class Work:
    """What all contenders do.

    Attributes:
        model: In eval mode.
        tokenizer: Of the model.
        utterances: Longest first.
        batches: The same utterances encoded, in the same order.
        beam_size: Hypotheses kept in every step.
    """

    model: Recognizer
    tokenizer: Tokenizer
    utterances: list[Utterance]
    batches: list[Batch]
    beam_size: int

    @property
    def audio_s(self) -> float:
        """Seconds of audio."""
        return sum(utterance.duration_s for utterance in self.utterances)

    @property
    def device(self) -> torch.device:
        """Where the frames are."""
        return self.batches[0].frames.device


@dataclass(frozen=True, slots=True)
class Contender:
    """A search that takes part.

    Attributes:
        name: Names its row.
        version: Of the package that it comes from.
        search: The N best transcripts of each utterance of a batch, best first, at least one.
    """

    name: str
    version: str
    search: Callable[[Batch], list[list[Tokens]]]

    def one_by_one(self, name: str) -> "Contender":
        """The same search, given one utterance at a time."""
        return Contender(name, self.version, lambda batch: [self.search(one)[0] for one in batch.alone()])


@dataclass(slots=True, kw_only=True)
class Benchmark:
    """A kind of benchmark: who takes part, and how good a transcript is.

    Attributes:
        name: Names the file of results.
    """

    name: str

    def builders(self, work: Work) -> list[Callable[[], Contender]]:
        """What makes the contenders, the one that the others are compared with first; each may raise `Skipped`."""
        raise NotImplementedError

    def scorer(self, work: Work) -> Callable[[Batch, Tokens], float]:
        """The exact score of a transcript of one utterance, whichever search found it."""
        raise NotImplementedError


@dataclass(slots=True)
class Result:
    """What a contender took and found.

    Attributes:
        contender: Which one.
        seconds: For all utterances, one number a repeat.
        cpu_seconds: The same of the processor's time, which other programs on a busy machine leave as it is.
        found: The N best transcripts of each utterance.
    """

    contender: Contender
    seconds: list[float]
    cpu_seconds: list[float]
    found: list[list[Tokens]]

    def ratios(self, other: "Result") -> list[float]:
        """How many times the other's seconds this one takes, repeat by repeat."""
        return [own / others for own, others in zip(self.seconds, other.seconds, strict=True)]


def prepare(loaded: LoadedModel, utterances: Sequence[Utterance], *, batch_size: int, beam_size: int) -> Work:
    """Reads and encodes utterances, in batches of similar length.

    Raises:
        AudioError: If a file cannot be read.
    """
    model, batches = loaded.model, []
    ordered = sorted(utterances, key=lambda each: (-each.duration_s, each.id))
    for start in range(0, len(ordered), batch_size):
        chunk = ordered[start : start + batch_size]
        waveforms = [load_utterance(utterance, sample_rate=loaded.sample_rate) for utterance in chunk]
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device=loaded.device)
        encoded = model.encode(pad_sequence(waveforms, batch_first=True).to(loaded.device), lengths)
        log_probs = model.ctc_log_probs(encoded.frames)
        log_probs[:, :, EOS_ID] = -torch.inf
        batches.append(Batch(encoded.frames, encoded.lengths, log_probs.log_softmax(dim=-1)))
    return Work(model=model, tokenizer=loaded.tokenizer, utterances=ordered, batches=batches, beam_size=beam_size)


def build(builders: Sequence[Callable[[], Contender]]) -> tuple[list[Contender], list[str]]:
    """Makes the contenders; those that cannot take part are left out, with the reasons."""
    contenders, reasons = [], []
    for builder in builders:
        try:
            contenders.append(builder())
        except Skipped as reason:
            reasons.append(str(reason))
    return contenders, reasons


def measure(contenders: Sequence[Contender], batches: Sequence[Batch], *, repeats: int) -> list[Result]:
    """Gives every batch to all contenders before the next, so that a slow minute of the machine hits all alike.

    Each contender first takes the last batch, the shortest, untimed. From repeat to repeat another one begins.
    """
    for contender in contenders:
        contender.search(batches[-1])
    results = [Result(contender, [0.0] * repeats, [0.0] * repeats, []) for contender in contenders]
    for repeat in range(repeats):
        first = repeat % len(results)
        for batch in batches:
            for result in results[first:] + results[:first]:
                found, seconds, cpu_seconds = _timed(result.contender, batch)
                result.seconds[repeat] += seconds
                result.cpu_seconds[repeat] += cpu_seconds
                if repeat == 0:
                    result.found += found
    return results


def _timed(contender: Contender, batch: Batch) -> tuple[list[list[Tokens]], float, float]:
    """What is found, after how many seconds, and how many of the processor's."""
    _wait_for(batch.frames.device)
    started, cpu_started = time.perf_counter(), time.process_time()
    found = contender.search(batch)
    _wait_for(batch.frames.device)
    return found, time.perf_counter() - started, time.process_time() - cpu_started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The best transcripts of the first contender beside another's, by their exact scores.

    Attributes:
        same: Utterances with the same transcript, or with scores that differ by no more than `TOLERANCE`.
        better: Utterances where the first one's scores higher.
        worse: Utterances where it scores lower.
        shortfall: The most that it lies below the other's, 0 where it never does.
        shared: Share of the other's N best transcripts that are among the first one's, in [0, 1].
    """

    same: int
    better: int
    worse: int
    shortfall: float
    shared: float


def compare(first: Result, other: Result, *, first_scores: Sequence[float], scores: Sequence[float]) -> Comparison:
    """Compares two results, given the exact scores of their best transcripts."""
    gaps, shares = [], []
    for own, others, score, other_score in zip(first.found, other.found, first_scores, scores, strict=True):
        gaps.append(0.0 if own[0] == others[0] else score - other_score)  # both may be minus infinity
        shares.append(len(set(own) & set(others)) / len(set(others)))
    better, worse = (sum(sign * gap > TOLERANCE for gap in gaps) for sign in (1, -1))
    return Comparison(
        same=len(gaps) - better - worse,
        better=better,
        worse=worse,
        shortfall=max(0.0, -min(gaps)),
        shared=statistics.fmean(shares),
    )
