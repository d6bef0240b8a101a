"""Run folders as recipes leave them, written by hand: configs, models, events, scores of a test set."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from comparison.runs import Run, read_run
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from asr import evaluate
from asr.data import manifest
from asr.data.manifest import Utterance

CONFIG = {
    "name": "base",
    "seed": 1,
    "init_from": None,
    "num_threads": 1,
    "encoder": {"width": 96, "num_heads": 4, "dropout": 0.1, "intermediate_layers": []},
    "loss": {"ctc_weight": 0.3, "consistency_weight": 0.0},
    "data": {"name": "tones", "manifests": "manifests", "valid": ["dev"]},
}
# Wall clock in s, step, value: a point of a curve.
Points = Sequence[tuple[float, int, float]]


def write_run(folder: Path, *, steps: int = 0, seconds: float = 0.0, **changes: Any) -> Path:
    """A run folder with a config in which keys such as `encoder__width` are changed, and after steps with a model."""
    config = json.loads(json.dumps(CONFIG | {"name": folder.name}))
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = config
        for part in parts:
            place = place[part]
        place[last] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    if steps:
        write_model(folder / "model", steps=steps, seconds=seconds)
    return folder


def write_model(folder: Path, *, steps: int, seconds: float) -> None:
    folder.mkdir(parents=True)
    training = {"training": {"steps": steps, "seconds": seconds}}
    (folder / "config.json").write_text(json.dumps(training), encoding="utf-8")
    save_file({"weight": torch.zeros(3, 4), "bias": torch.zeros(5)}, folder / "model.safetensors")


def write_events(folder: Path, *parts: dict[str, Points]) -> Path:
    """TensorBoard's events of one process after the other, as the trainer writes them."""
    for number, tags in enumerate(parts):
        writer = SummaryWriter(str(folder / "part"))
        for tag, points in tags.items():
            for wall_s, step, value in points:
                writer.add_scalar(tag, value, step, walltime=wall_s)
        writer.close()
        (file,) = (folder / "part").iterdir()
        file.rename(folder / f"events.out.tfevents.{1000 + number}.host")
        (folder / "part").rmdir()
    return folder


def runs_of(*folders: Path) -> list[Run]:
    return [read_run(folder) for folder in folders]


TEXTS = ["one two three", "four five", "six seven eight nine", "ten", "one three five seven", "two", "nine eight"]


@dataclass
class Scoring:
    """A manifest, and runs that are scored on it."""

    folder: Path
    references: dict[str, str]

    def write(self, name: str, hypotheses: Sequence[str], *, wer: float | None = None, **changes: Any) -> Path:
        run = write_run(self.folder / name, steps=4, seconds=90.0, **changes)
        write_events(run, {"valid/wer": [(1000.0, 2, 0.5), (1060.0, 4, 0.25)]})
        place = run / "test"
        place.mkdir()
        found = dict(zip(self.references, hypotheses, strict=True))
        rate = evaluate.score(self.references, found, num_draws=1).wer if wer is None else wer
        (place / "results.json").write_text(json.dumps({"set": "test", "wer": rate}), encoding="utf-8")
        lines = [f"{key} {said}\n" for key, said in found.items()]
        (place / "transcripts.txt").write_text("".join(lines), encoding="utf-8")
        return run


def make_scoring(folder: Path) -> Scoring:
    utterances = [
        Utterance(id=f"u{number}", audio=Path("a.wav"), duration_s=1.0, text=said) for number, said in enumerate(TEXTS)
    ]
    manifest.write(folder / "test.jsonl", utterances)
    return Scoring(folder, {each.id: each.text for each in utterances})


def damaged(*errors: int) -> list[str]:
    """The texts, with so many words of each replaced."""
    found = []
    for number, said in enumerate(TEXTS):
        words = said.split()
        count = errors[number] if number < len(errors) else 0
        found.append(" ".join(["wrong"] * count + words[count:]))
    return found
