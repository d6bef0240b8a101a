"""Word and character error rates, with confidence intervals and a paired test, from plain texts.

A rate over no reference words (or characters) divides by one, as jiwer does: it is 0 without errors and otherwise the
number of insertions. All rates are fractions, which exceed 1 when there are more errors than words.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from asr.text import normalize

# The bootstrap draws in blocks of about this many indices, so that its memory does not grow with the test set.
_DRAWS_PER_BLOCK = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """One utterance's reference words beside its hypothesis words.

    Attributes:
        id: the utterance.
        speaker: who speaks, or empty where that is unknown.
        pairs: (reference word, hypothesis word), in order; an empty string stands opposite a deleted or inserted word.
    """

    id: str
    speaker: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def reference(self) -> str:
        """The normalised reference."""
        return " ".join(reference for reference, _ in self.pairs if reference)

    @property
    def hypothesis(self) -> str:
        """The normalised hypothesis."""
        return " ".join(hypothesis for _, hypothesis in self.pairs if hypothesis)

    @property
    def words(self) -> int:
        """Number of reference words."""
        return sum(bool(reference) for reference, _ in self.pairs)

    @property
    def substitutions(self) -> int:
        """Number of words recognised as another word."""
        return sum(bool(reference and hypothesis and reference != hypothesis) for reference, hypothesis in self.pairs)

    @property
    def deletions(self) -> int:
        """Number of reference words without a counterpart."""
        return sum(not hypothesis for _, hypothesis in self.pairs)

    @property
    def insertions(self) -> int:
        """Number of hypothesis words without a counterpart."""
        return sum(not reference for reference, _ in self.pairs)

    @property
    def errors(self) -> int:
        """Number of substitutions, deletions and insertions."""
        return sum(reference != hypothesis for reference, hypothesis in self.pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerScore:
    """One speaker's share of a score."""

    utterances: int
    words: int
    wer: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How far the hypotheses of a test set are from its references. Rates are fractions.

    Attributes:
        utterances: number of utterances.
        words: number of reference words.
        wer: (substitutions + deletions + insertions) / words.
        wer_ci95: percentile bootstrap 95 % interval of `wer`, drawing utterances.
        wer_ci95_by_speaker: the same drawing speakers, which is wider and more honest, since the utterances of one
            speaker are alike. None unless every utterance's speaker is known and there are at least two.
        cer: the same as `wer` over characters, the single spaces between words included.
        characters: number of reference characters, spaces included.
        substitutions, deletions, insertions: numbers of word errors of each kind.
        sentence_error_rate: share of utterances with at least one error.
        by_speaker: the known speakers, the worst first.
        confusions: (reference word, hypothesis word) of every error with its count, the most frequent first; the empty
            string stands for the missing word of a deletion or an insertion.
        alignments: every utterance, in the order of the references.
    """

    utterances: int
    words: int
    wer: float
    wer_ci95: tuple[float, float]
    wer_ci95_by_speaker: tuple[float, float] | None
    cer: float
    characters: int
    substitutions: int
    deletions: int
    insertions: int
    sentence_error_rate: float
    by_speaker: dict[str, SpeakerScore]
    confusions: list[tuple[str, str, int]]
    alignments: list[Alignment]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values, under the names of `results.json`; no confusions and no alignments."""
        names = [field.name for field in fields(self) if field.name not in ("confusions", "alignments")]
        figures = {name: getattr(self, name) for name in names}
        return {**figures, "by_speaker": {speaker: asdict(part) for speaker, part in self.by_speaker.items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A paired bootstrap test between two runs, A and B, over the same references (Bisani and Ney, 2004).

    Attributes:
        wer_a, wer_b: word error rates, as fractions.
        difference: `wer_b - wer_a`; negative where B is better.
        ci95: percentile bootstrap 95 % interval of `difference`, drawing utterances.
        p_value: two-sided: twice the share of draws in which the difference vanishes or has the other sign, at most 1.
        ci95_by_speaker, p_value_by_speaker: the same drawing speakers; None under the terms of `Score`.
    """

    wer_a: float
    wer_b: float
    difference: float
    ci95: tuple[float, float]
    p_value: float
    ci95_by_speaker: tuple[float, float] | None
    p_value_by_speaker: float | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return asdict(self)


def score(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    *,
    speakers: Mapping[str, str] | None = None,
    num_draws: int = 10_000,
    seed: int = 0,
) -> Score:
    """Compare hypotheses with references, both brought to the form of `asr.text.normalize` first.

    Args:
        references: text by utterance id. An empty one is allowed: all that its hypothesis says is then inserted.
        hypotheses: text by utterance id, for exactly the same ids.
        speakers: speaker by utterance id; utterances that it lacks, or gives an empty name, count as unknown.
        num_draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        ValueError: there is nothing to score, an utterance has only one side, or `num_draws` is below 1.
    """
    alignments = _align(references, hypotheses, speakers or {})
    counts = np.array([(part.errors, part.words) for part in alignments], dtype=np.int64)  # (utterances, 2)
    by_utterance, by_speaker = _bootstrap_both(counts, alignments, num_draws=num_draws, seed=seed)
    characters = jiwer.process_characters(
        [part.reference for part in alignments], [part.hypothesis for part in alignments]
    )
    num_characters = characters.hits + characters.substitutions + characters.deletions
    confusions = Counter(pair for part in alignments for pair in part.pairs if pair[0] != pair[1])
    errors, words = counts.sum(axis=0).tolist()
    return Score(
        utterances=len(alignments),
        words=words,
        wer=errors / max(words, 1),
        wer_ci95=_interval(_rate(*by_utterance)),
        wer_ci95_by_speaker=None if by_speaker is None else _interval(_rate(*by_speaker)),
        cer=(characters.substitutions + characters.deletions + characters.insertions) / max(num_characters, 1),
        characters=num_characters,
        substitutions=sum(part.substitutions for part in alignments),
        deletions=sum(part.deletions for part in alignments),
        insertions=sum(part.insertions for part in alignments),
        sentence_error_rate=sum(part.errors > 0 for part in alignments) / len(alignments),
        by_speaker=_score_speakers(alignments),
        confusions=[(*pair, count) for pair, count in sorted(confusions.items(), key=lambda item: (-item[1], item[0]))],
        alignments=alignments,
    )


def compare(
    references: Mapping[str, str],
    hypotheses_a: Mapping[str, str],
    hypotheses_b: Mapping[str, str],
    *,
    speakers: Mapping[str, str] | None = None,
    num_draws: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Test whether run B's word error rate differs from run A's: both are scored on the same bootstrap draws.

    Args:
        references: text by utterance id.
        hypotheses_a: run A's text by utterance id, for exactly the same ids.
        hypotheses_b: run B's, likewise.
        speakers: as for `score`.
        num_draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        ValueError: there is nothing to score, an utterance lacks a side, or `num_draws` is below 1.
    """
    run_a = _align(references, hypotheses_a, speakers or {})
    run_b = _align(references, hypotheses_b, speakers or {})
    counts = np.array(
        [(part_a.errors, part_b.errors, part_a.words) for part_a, part_b in zip(run_a, run_b, strict=True)],
        dtype=np.int64,
    )  # (utterances, 3)
    errors_a, errors_b, words = counts.sum(axis=0).tolist()
    difference = (errors_b - errors_a) / max(words, 1)
    by_utterance, by_speaker = _bootstrap_both(counts, run_a, num_draws=num_draws, seed=seed)
    ci95, p_value = _test_difference(by_utterance, difference)
    return Comparison(
        wer_a=errors_a / max(words, 1),
        wer_b=errors_b / max(words, 1),
        difference=difference,
        ci95=ci95,
        p_value=p_value,
        ci95_by_speaker=None if by_speaker is None else _test_difference(by_speaker, difference)[0],
        p_value_by_speaker=None if by_speaker is None else _test_difference(by_speaker, difference)[1],
    )


def read_texts(path: Path) -> dict[str, str]:
    """Read a file of `ID words…` lines, such as LibriSpeech's `*.trans.txt`, in UTF-8.

    A line of an id alone is an utterance with empty text; blank lines do not count.

    Raises:
        ValueError: an id comes twice, a line is not UTF-8, or there is no utterance; the message names file and line.
        OSError: the file cannot be read.
    """
    texts: dict[str, str] = {}
    first_lines: dict[str, int] = {}
    for number, raw_line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            # Editors on Windows begin a file with a byte order mark, which would become part of the first id.
            line = raw_line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8 text; convert the file to UTF-8"
            ) from error
        if not line.strip():
            continue
        utterance_id, *words = line.split(maxsplit=1)
        if utterance_id in texts:
            raise ValueError(
                f"{path}:{number}: utterance {utterance_id} was given on line {first_lines[utterance_id]} already"
            )
        texts[utterance_id] = words[0].rstrip() if words else ""
        first_lines[utterance_id] = number
    if not texts:
        raise ValueError(f"{path}: no utterances; expected lines of an utterance id and its words")
    return texts


def _align(
    references: Mapping[str, str], hypotheses: Mapping[str, str], speakers: Mapping[str, str]
) -> list[Alignment]:
    """Align every utterance's words by jiwer, in the order of the references."""
    _check_same_ids(references, hypotheses)
    output = jiwer.process_words(
        [normalize(text) for text in references.values()],
        [normalize(hypotheses[utterance_id]) for utterance_id in references],
    )
    return [
        Alignment(
            id=utterance_id,
            speaker=speakers.get(utterance_id, ""),
            pairs=tuple(pair for chunk in chunks for pair in _pairs(chunk, reference, hypothesis)),
        )
        for utterance_id, chunks, reference, hypothesis in zip(
            references, output.alignments, output.references, output.hypotheses, strict=True
        )
    ]


def _pairs(chunk: jiwer.AlignmentChunk, reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[str, str]]:
    """The word pairs of one run of equal, substituted, deleted or inserted words."""
    reference = reference[chunk.ref_start_idx : chunk.ref_end_idx]
    hypothesis = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
    length = max(len(reference), len(hypothesis))
    return list(zip(reference or [""] * length, hypothesis or [""] * length, strict=True))


def _check_same_ids(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> None:
    if not references:
        raise ValueError("there is nothing to score: no references")
    missing = [utterance_id for utterance_id in references if utterance_id not in hypotheses]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(references)} references have no hypothesis: {_name_first(missing)}; "
            "give an empty hypothesis where nothing was recognised"
        )
    extra = [utterance_id for utterance_id in hypotheses if utterance_id not in references]
    if extra:
        raise ValueError(f"{len(extra)} of {len(hypotheses)} hypotheses have no reference: {_name_first(extra)}")


def _name_first(ids: Sequence[str], *, limit: int = 5) -> str:
    return ", ".join(ids[:limit]) + (", …" if len(ids) > limit else "")


def _score_speakers(alignments: Sequence[Alignment]) -> dict[str, SpeakerScore]:
    groups: dict[str, list[Alignment]] = defaultdict(list)
    for part in alignments:
        if part.speaker:
            groups[part.speaker].append(part)
    scores = {}
    for speaker, group in groups.items():
        words = sum(part.words for part in group)
        wer = sum(part.errors for part in group) / max(words, 1)
        scores[speaker] = SpeakerScore(utterances=len(group), words=words, wer=wer)
    return dict(sorted(scores.items(), key=lambda item: (-item[1].wer, item[0])))


def _bootstrap_both(
    counts: np.ndarray, alignments: Sequence[Alignment], *, num_draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Bootstrap totals drawing utterances and, where the speakers allow it, drawing speakers.

    Args:
        counts: (utterances, columns) numbers to add up.

    Returns:
        Totals of every draw, (columns, num_draws) each; the second is None without at least two speakers, all known.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; the bootstrap needs at least 1 draw")
    speakers, index_of_speaker = np.unique([part.speaker for part in alignments], return_inverse=True)
    by_utterance = _bootstrap(counts, num_draws=num_draws, seed=seed)
    if len(speakers) < 2 or "" in speakers:
        return by_utterance, None
    speaker_counts = np.zeros((len(speakers), counts.shape[1]), dtype=counts.dtype)
    np.add.at(speaker_counts, index_of_speaker, counts)
    return by_utterance, _bootstrap(speaker_counts, num_draws=num_draws, seed=seed)


def _bootstrap(counts: np.ndarray, *, num_draws: int, seed: int) -> np.ndarray:
    """Draw as many rows as there are, with replacement, and add them up; (rows, columns) -> (columns, num_draws)."""
    generator = np.random.default_rng(seed)
    num_rows, num_columns = counts.shape
    columns = [np.ascontiguousarray(counts[:, column]) for column in range(num_columns)]
    totals = np.empty((num_columns, num_draws), dtype=counts.dtype)
    block = max(1, _DRAWS_PER_BLOCK // num_rows)
    for start in range(0, num_draws, block):
        stop = min(start + block, num_draws)
        drawn = generator.integers(num_rows, size=(stop - start, num_rows))
        for column in range(num_columns):
            totals[column, start:stop] = columns[column][drawn].sum(axis=1)
    return totals


def _test_difference(totals: np.ndarray, difference: float) -> tuple[tuple[float, float], float]:
    """Interval and p-value of `Comparison` from drawn totals of A's errors, B's errors and words, (3, num_draws)."""
    drawn = _rate(totals[1] - totals[0], totals[2])
    # Counting one draw more than there are keeps the estimate from being zero (Davison & Hinkley 1997, eq. 4.11).
    other_sign = (np.count_nonzero(drawn * np.sign(difference) <= 0) + 1) / (len(drawn) + 1)
    return _interval(drawn), min(1.0, 2 * float(other_sign))


def _rate(errors: np.ndarray, words: np.ndarray) -> np.ndarray:
    return errors / np.maximum(words, 1)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, (0.025, 0.975)).tolist()
    return low, high
