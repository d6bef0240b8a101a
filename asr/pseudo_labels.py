"""Transcripts that a model makes to train on: recognised, judged, and kept where they can be trusted.

Noisy-student training (Xie et al. 2020; for speech Park et al. 2020, "Improved noisy student training for automatic
speech recognition"): a teacher labels audio without transcripts, and a student learns from these labels too, with
masks, speeds and dropout that make its task harder than the teacher's was.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from asr import audio
from asr.checkpoint import LoadedModel
from asr.confidence import UNCALIBRATED, Calibration
from asr.data import manifest
from asr.data.manifest import Utterance
from asr.decoding.search import DecodingConfig
from asr.recognition import SearchBuilder, hear, recognize_utterances

KEPT = "kept"
REASONS = ("excluded", "nothing heard", "too few letters a second", "too many letters a second", "low confidence")


@dataclass(slots=True, kw_only=True)
class SelectionConfig:
    """Which labels can be trusted.

    Attributes:
        min_confidence: Least mean confidence of the words of an utterance, in [0, 1].
        min_letters_per_s: Fewer letters in a second of audio mean that something was not heard.
        max_letters_per_s: More mean that the model babbles; read English has 10 to 20.
    """

    min_confidence: float = 0.9
    min_letters_per_s: float = 4.0
    max_letters_per_s: float = 25.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"selection.min_confidence is {self.min_confidence}; it must be in [0, 1]")
        if not 0 <= self.min_letters_per_s < self.max_letters_per_s:
            raise ValueError(
                f"selection.min_letters_per_s {self.min_letters_per_s:g} and max_letters_per_s "
                f"{self.max_letters_per_s:g}: the first must be at least 0 and below the second"
            )


@dataclass(frozen=True, slots=True)
class PseudoLabel:
    """What a model made of one utterance.

    Attributes:
        utterance: With the model's words as its text.
        confidence: Mean over its words, in [0, 1]; 0 without any.
        verdict: `KEPT` or one of `REASONS`.
    """

    utterance: Utterance
    confidence: float
    verdict: str


def find_utterances(inputs: Sequence[Path]) -> list[Utterance]:
    """The utterances of manifests, and the audio files of folders and paths, each an utterance without text.

    Raises:
        AudioError: If a file is no audio.
        FileNotFoundError: If a path is not there.
        ValueError: If a manifest is broken, a folder has no audio, or two utterances have one id.
    """
    found: dict[str, Utterance] = {}
    for path in inputs:
        if path.suffix == ".jsonl":
            utterances = manifest.read(path)
        else:
            utterances = [
                Utterance(
                    id="_".join("-".join(source.relative.parts).split()),
                    audio=source.path,
                    duration_s=audio.probe(source.path).duration_s,
                    text="",
                )
                for source in audio.find_sources([path])
            ]
        for utterance in utterances:
            if utterance.id in found:
                raise ValueError(f"{path}: another input has an utterance {utterance.id!r} too; label them apart")
            found[utterance.id] = utterance
    return list(found.values())


def label(
    loaded: LoadedModel,
    utterances: Sequence[Utterance],
    *,
    decoding: DecodingConfig,
    selection: SelectionConfig,
    calibration: Calibration = UNCALIBRATED,
    excluded: Collection[str] = (),
    max_batch_s: float = 120.0,
    progress: bool = True,
) -> Iterator[PseudoLabel]:
    """Recognises utterances and judges what was heard; their own texts are never looked at.

    Args:
        loaded: The teacher.
        utterances: What to label.
        decoding: How to search.
        selection: What to keep.
        calibration: Of the confidence of words, fitted for this way to search.
        excluded: Ids that must not be trained on, such as those of test sets.
        max_batch_s: Most seconds of audio of a batch.
        progress: Whether to show a progress bar.

    Yields:
        A label for every utterance, in the order of recognition.

    Raises:
        FileNotFoundError: If a language model or an audio file is missing.
        ValueError: If audio cannot be read, or the search does not fit the model.
    """
    search = SearchBuilder(loaded).build(decoding)
    for utterance, found in recognize_utterances(
        loaded.model,
        utterances,
        {"teacher": search},
        sample_rate=loaded.sample_rate,
        max_batch_s=max_batch_s,
        progress=progress,
    ):
        heard = hear(found["teacher"], loaded.tokenizer)
        confidence = fmean(calibration.confidences(heard.evidence)) if heard.evidence else 0.0
        labelled = replace(utterance, text=heard.text)
        verdict = "excluded" if utterance.id in excluded else judge(labelled, confidence, selection)
        yield PseudoLabel(labelled, confidence, verdict)


def judge(utterance: Utterance, confidence: float, selection: SelectionConfig) -> str:
    """Whether to keep a label: `KEPT`, or the first of `REASONS` that speaks against it."""
    letters_per_s = len(utterance.text.replace(" ", "")) / utterance.duration_s
    if not letters_per_s:
        return "nothing heard"
    if letters_per_s < selection.min_letters_per_s:
        return "too few letters a second"
    if letters_per_s > selection.max_letters_per_s:
        return "too many letters a second"
    return KEPT if confidence >= selection.min_confidence else "low confidence"
