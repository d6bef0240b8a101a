"""What benchmarks of searches share: the same encoder frames for all, and transcripts compared by exact scores."""

# B utterances, T' encoder frames, D width, V vocabulary, N hypotheses of an utterance

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr import checkpoint, evaluate
from asr.checkpoint import LoadedModel
from asr.data import manifest
from asr.data.dataset import load_utterance
from asr.data.manifest import Utterance
from asr.nn.model import Recognizer
from asr.report import percent, table
from asr.tokenizer import EOS_ID, Tokenizer
from benchmarks import report
from benchmarks.harness import Benchmark, Conditions, Contender, Result, build, measure

Tokens = tuple[int, ...]

TOLERANCE = 1e-4  # what a search in float32 cannot tell apart


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


def one_by_one(contender: Contender, name: str) -> Contender:
    """The same search, given one utterance at a time."""
    return Contender(name, contender.version, lambda batch: [contender.run(one)[0] for one in batch.alone()])


@dataclass(slots=True, kw_only=True)
class SearchingBenchmark(Benchmark):
    """A search beside its peers, on the same frames. A contender takes a `Batch` and returns the N best transcripts of
    each of its utterances, best first, at least one.

    Attributes:
        num_utterances: Most utterances, taken evenly from the manifest.
        batch_size: Utterances of a batch.
        beam_size: Hypotheses kept in every step, by all.
    """

    needs_model: ClassVar[bool] = True
    num_utterances: int = 32
    batch_size: int = 16
    beam_size: int = 10

    def __post_init__(self) -> None:
        for name in ("num_utterances", "batch_size", "beam_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"benchmark.{name} is {getattr(self, name)}; it must be at least 1")

    def builders(self, work: Work) -> list[Callable[[], Contender]]:
        """What makes the contenders, the one that the others are compared with first; each may raise `Skipped`."""
        raise NotImplementedError

    def scorer(self, work: Work) -> Callable[[Batch, Tokens], float]:
        """The exact score of a transcript of one utterance, whichever search found it."""
        raise NotImplementedError

    @torch.inference_mode()
    def run(self, conditions: Conditions) -> dict[str, Any]:
        """Encodes the utterances once and gives them to all searches.

        Raises:
            FileNotFoundError: If there is no such model or manifest.
            ValueError: If a file is broken, or the model does not fit the search.
        """
        assert conditions.model is not None and conditions.manifest is not None
        loaded = checkpoint.load(conditions.model, device=conditions.device)
        chosen = manifest.spread_out(manifest.read(conditions.manifest), self.num_utterances)
        work = prepare(loaded, chosen, batch_size=self.batch_size, beam_size=self.beam_size)
        contenders, skipped = build(self.builders(work))
        measured = measure(contenders, work.batches, repeats=conditions.repeats, device=conditions.device)
        return {"model": str(loaded.path)} | results(self, work, measured, skipped)

    def tables(self, found: dict[str, Any]) -> list[str]:
        """Speed, then quality."""
        return [report.speed_table(found["contenders"]), _quality_table(found["contenders"])]


def results(
    benchmark: SearchingBenchmark, work: Work, measured: Sequence[Result], skipped: Sequence[str]
) -> dict[str, Any]:
    """Times and quality of every contender, as plain JSON values.

    Args:
        benchmark: What was compared.
        work: What all did.
        measured: What each took and found; the first one is what the others are compared with.
        skipped: Why others did not take part.
    """
    scores = _scores(benchmark, work, measured)
    first, contenders = measured[0], []
    for result in measured:
        own = scores[result.contender.name]
        comparison = compare(first, result, first_scores=scores[first.contender.name], scores=own)
        contenders.append(
            report.times(result, first, audio_s=work.audio_s)
            | {"wer": _word_error_rate(work, result), "mean_score": statistics.fmean(own)}
            | {"compared": asdict(comparison)}
        )
    largest = work.batches[0]
    return {
        "work": f"{len(work.utterances)} utterances, {work.audio_s:.0f} s of audio",
        "dtype": str(largest.frames.dtype).removeprefix("torch."),
        "shapes": {"frames": list(largest.frames.shape), "log_probs": list(largest.log_probs.shape)},
        "audio_s": round(work.audio_s, 2),
        "batch_size": len(largest.lengths),
        "contenders": contenders,
        "skipped": list(skipped),
        "utterances": _utterances(work, measured, scores),
    }


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
    pairs = zip(per_utterance(first), per_utterance(other), first_scores, scores, strict=True)
    for own, others, score, other_score in pairs:
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


def per_utterance(result: Result) -> list[list[Tokens]]:
    """The N best transcripts of each utterance, in the order of the work."""
    return list(itertools.chain.from_iterable(result.found))


def _scores(benchmark: SearchingBenchmark, work: Work, measured: Sequence[Result]) -> dict[str, list[float]]:
    """The exact score of each best transcript, by contender; one that several found is scored once."""
    score = benchmark.scorer(work)
    singles = [one for batch in work.batches for one in batch.alone()]
    known: dict[tuple[int, Tokens], float] = {}

    def look_up(number: int, one: Batch, tokens: Tokens) -> float:
        if (number, tokens) not in known:
            known[number, tokens] = score(one, tokens)
        return known[number, tokens]

    return {
        result.contender.name: [
            look_up(number, one, best[0])
            for number, (one, best) in enumerate(zip(singles, per_utterance(result), strict=True))
        ]
        for result in measured
    }


def _word_error_rate(work: Work, result: Result) -> float:
    texts = {
        utterance.id: work.tokenizer.decode(found[0])
        for utterance, found in zip(work.utterances, per_utterance(result), strict=True)
    }
    return evaluate.score({utterance.id: utterance.text for utterance in work.utterances}, texts).wer


def _utterances(work: Work, measured: Sequence[Result], scores: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Best transcript and exact score of every utterance by every contender."""
    found = {result.contender.name: per_utterance(result) for result in measured}
    return [
        {
            "id": utterance.id,
            "duration_s": utterance.duration_s,
            "best": {
                name: {"text": work.tokenizer.decode(best[number][0]), "score": scores[name][number]}
                for name, best in found.items()
            },
        }
        for number, utterance in enumerate(work.utterances)
    ]


def _quality_table(contenders: Sequence[dict[str, Any]]) -> str:
    rows = [["best transcripts", "WER", "mean score", "same", "first better", "worse", "by at most", "N best shared"]]
    for each in contenders:
        compared = each["compared"]
        counts = [str(compared[name]) for name in ("same", "better", "worse")]
        rest = [f"{compared['shortfall']:.4f}", percent(compared["shared"])]
        rows.append([each["name"], percent(each["wer"]), f"{each['mean_score']:.4f}", *counts, *rest])
    return table(rows)
