"""A model on a test set: recognise, score, write `results.json`, `transcripts.txt` and `errors.txt`."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asr import evaluate, report
from asr.checkpoint import LoadedModel
from asr.confidence import (
    UNCALIBRATED,
    Calibration,
    correct_words,
    expected_calibration_error,
    normalized_cross_entropy,
    reliability,
    reliability_diagram,
)
from asr.data import manifest
from asr.data.manifest import Utterance
from asr.decoding.search import DecodingConfig, Encoding, Recognition, Search
from asr.phrase_recall import phrase_recall, wer_of_rest
from asr.recognition import Heard, SearchBuilder, hear, recognize_utterances


@dataclass(slots=True)
class _TimedSearch:
    """A search that counts the seconds it takes. It ends with numbers on the host, so a GPU is waited for."""

    search: Search
    seconds: float = 0.0

    def __call__(self, encoding: Encoding) -> list[Recognition]:
        """Searches a batch."""
        started = time.perf_counter()
        found = self.search(encoding)
        self.seconds += time.perf_counter() - started
        return found


def evaluate_manifest(
    loaded: LoadedModel,
    manifest_path: Path,
    *,
    decodings: Mapping[str, DecodingConfig],
    output: Path,
    calibrations: Mapping[str, Calibration] | None = None,
    listed: Sequence[str] = (),
    max_batch_s: float = 120.0,
    precision: str = "float32",
    progress: bool = True,
) -> dict[str, tuple[evaluate.Score, dict[str, Any]]]:
    """Recognises all utterances of a manifest in one or several ways, from one encoder pass, and scores each.

    The time that is measured for each way is that of reading the audio, the encoder, and this way's search.

    Args:
        loaded: The recogniser.
        manifest_path: The set; its stem is the set's name.
        decodings: How to search, by name.
        output: The folder `output/SET/` gets the files; of several ways, each has a folder of its name in that.
        calibrations: Of the confidence of words, by the same names; without one, it is the CTC probability.
        listed: Words and phrases whose recall is of interest.
        max_batch_s: Most seconds of audio of a batch.
        precision: Of the encoder, as for `asr.devices.pick_dtype`.
        progress: Whether to show a progress bar.

    Returns:
        The score, and what `results.json` holds, by name.

    Raises:
        FileNotFoundError: If the manifest, a file in it or a language model is missing.
        ValueError: If the manifest is broken, audio cannot be read, or a search does not fit the model.
    """
    utterances = manifest.read(manifest_path)
    builder = SearchBuilder(loaded)
    searches = {name: _TimedSearch(builder.build(config)) for name, config in decodings.items()}
    started = time.perf_counter()
    heard: dict[str, dict[str, Heard]] = {name: {} for name in decodings}
    judged_s = 0.0
    for utterance, found in recognize_utterances(
        loaded.model,
        utterances,
        searches,
        sample_rate=loaded.sample_rate,
        max_batch_s=max_batch_s,
        precision=precision,
        progress=progress,
    ):
        judged = time.perf_counter()
        for name, recognition in found.items():
            heard[name][utterance.id] = hear(recognition, loaded.tokenizer)
        judged_s += time.perf_counter() - judged
    shared_s = time.perf_counter() - started - judged_s - sum(search.seconds for search in searches.values())
    results = {}
    for name, config in decodings.items():
        folder = output / manifest_path.stem
        results[name] = _score(
            loaded,
            utterances,
            heard[name],
            folder=folder / name if len(decodings) > 1 else folder,
            set_name=manifest_path.stem,
            decoding=config,
            calibration=(calibrations or {}).get(name, UNCALIBRATED),
            listed=listed,
            decode_s=shared_s + searches[name].seconds,
        )
    return results


def _score(
    loaded: LoadedModel,
    utterances: list[Utterance],
    heard: dict[str, Heard],
    *,
    folder: Path,
    set_name: str,
    decoding: DecodingConfig,
    calibration: Calibration,
    listed: Sequence[str],
    decode_s: float,
) -> tuple[evaluate.Score, dict[str, Any]]:
    """Scores one way to search, and writes its files."""
    references = {utterance.id: utterance.text for utterance in utterances}
    texts = {key: each.text for key, each in heard.items()}
    score = evaluate.score(references, texts, speakers={each.id: each.speaker for each in utterances})
    confidences, correct = [], []
    for key, each in heard.items():
        confidences += calibration.confidences(each.evidence)
        correct += correct_words(references[key], each.text)
    audio_s = sum(utterance.duration_s for utterance in utterances)
    results = {
        "set": set_name,
        **score.to_dict(),
        "audio_s": round(audio_s, 2),
        "decode_s": round(decode_s, 2),
        "rtfx": round(audio_s / decode_s, 2),
        "parameters": loaded.model.num_parameters(),
        "checkpoint": str(loaded.path),
        "decoding": asdict(decoding),
        "confidence": _judge(confidences, correct, calibration),
    }
    if listed:
        found = phrase_recall(references, texts, listed)
        results["listed_words"] = found.to_dict() | {"wer_of_rest": wer_of_rest(score.alignments, listed)}
    diagram = reliability_diagram(reliability(confidences, correct)) if confidences else ""
    _write(folder, score, results, {each.id: texts[each.id] for each in utterances}, diagram)
    return score, results


def _judge(confidences: list[float], correct: list[bool], calibration: Calibration) -> dict[str, Any]:
    """How well confidences tell right words from wrong ones; nothing where no word was recognised."""
    error = expected_calibration_error(confidences, correct) if confidences else None
    entropy = normalized_cross_entropy(confidences, correct) if confidences else None
    return {
        "expected_calibration_error": None if error is None else round(error, 4),
        "normalized_cross_entropy": None if entropy is None else round(entropy, 4),
        "calibration": calibration.to_dict(),
    }


def _write(
    folder: Path, score: evaluate.Score, results: dict[str, Any], hypotheses: dict[str, str], diagram: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(results, indent=2, ensure_ascii=False, default=str)
    (folder / "results.json").write_text(content + "\n", encoding="utf-8")
    lines = [f"{utterance_id} {text}".rstrip() + "\n" for utterance_id, text in hypotheses.items()]
    (folder / "transcripts.txt").write_text("".join(lines), encoding="utf-8")
    name = str(results["set"])
    parts = [
        report.summary_table({name: score}),
        report.speaker_table(score),
        report.confusion_lists(score, limit=30),
        diagram,
        report.aligned_errors(score),
    ]
    (folder / "errors.txt").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
