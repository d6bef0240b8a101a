"""A model on a test set: recognise, score, write `results.json`, `transcripts.txt` and `errors.txt`."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from asr import evaluate, report
from asr.checkpoint import LoadedModel
from asr.data import manifest
from asr.decoding.search import DecodingConfig
from asr.recognition import recognize_utterances


def evaluate_manifest(
    loaded: LoadedModel,
    manifest_path: Path,
    *,
    decoding: DecodingConfig,
    output: Path,
    max_batch_s: float = 120.0,
    progress: bool = True,
) -> tuple[evaluate.Score, dict[str, Any]]:
    """Recognises and scores all utterances of a manifest. The time that is measured includes reading the audio.

    Args:
        loaded: The recogniser.
        manifest_path: The set; its stem is the set's name.
        decoding: How to search.
        output: The folder `output/SET/` gets the files.
        max_batch_s: Most seconds of audio of a batch.
        progress: Whether to show a progress bar.

    Returns:
        The score, and what `results.json` holds.

    Raises:
        FileNotFoundError: If the manifest or a file in it is missing.
        ValueError: If the manifest is broken or audio cannot be read.
    """
    utterances = manifest.read(manifest_path)
    started = time.perf_counter()
    hypotheses = {
        utterance.id: loaded.tokenizer.decode(found.best.tokens)
        for utterance, found in recognize_utterances(
            loaded.model,
            utterances,
            decoding,
            sample_rate=loaded.sample_rate,
            max_batch_s=max_batch_s,
            progress=progress,
        )
    }
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    decode_s = time.perf_counter() - started
    references = {utterance.id: utterance.text for utterance in utterances}
    score = evaluate.score(references, hypotheses, speakers={each.id: each.speaker for each in utterances})
    audio_s = sum(utterance.duration_s for utterance in utterances)
    results = {
        "set": manifest_path.stem,
        **score.to_dict(),
        "audio_s": round(audio_s, 2),
        "decode_s": round(decode_s, 2),
        "rtfx": round(audio_s / decode_s, 2),
        "parameters": loaded.model.num_parameters(),
        "checkpoint": str(loaded.path),
        "decoding": asdict(decoding),
    }
    _write(output / manifest_path.stem, score, results, {each.id: hypotheses[each.id] for each in utterances})
    return score, results


def _write(folder: Path, score: evaluate.Score, results: dict[str, Any], hypotheses: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [f"{utterance_id} {text}".rstrip() + "\n" for utterance_id, text in hypotheses.items()]
    (folder / "transcripts.txt").write_text("".join(lines), encoding="utf-8")
    name = str(results["set"])
    parts = [
        report.summary_table({name: score}),
        report.speaker_table(score),
        report.confusion_lists(score, limit=30),
        report.aligned_errors(score),
    ]
    (folder / "errors.txt").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
