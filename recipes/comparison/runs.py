"""Run folders: what each was told, how far it came, and which of them are one setting with several seeds."""

import glob
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open

# What decides neither what is learned nor how it is searched: names, places, and how the work is done.
_NO_DIFFERENCE = {
    "name",
    "num_threads",
    "tracking",
    "data.root",
    "data.manifests",
    "loader.num_workers",
    "loader.cache_gb",
    "trainer.save_every",
    "trainer.log_every",
}
# A label spells out this many settings, in this many letters, at most; beyond that a run's name says more.
_MOST_IN_LABEL, _LONGEST_LABEL = 3, 45
# What is left of names such as `abl-seed_1` and `abl-seed_2` behind the setting's own name.
_BEFORE_SEED = re.compile(r"[\W_]*(seed)?[\W_]*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run folder.

    Attributes:
        folder: Where it is.
        config: What it was told, with nested keys as `a.b.c`.
        steps: Optimiser steps that the newest checkpoint has behind it; 0 before the first checkpoint.
        seconds: Of training up to there, over all interruptions, in s.
        parameters: Number of weights; None before the first checkpoint.
    """

    folder: Path
    config: Mapping[str, Any]
    steps: int
    seconds: float
    parameters: int | None

    @property
    def seed(self) -> int:
        """What its random numbers were drawn from."""
        return int(self.config["seed"])

    @property
    def start(self) -> Path | None:
        """The folder of the run whose weights it started from, if it did not start from random ones.

        Raises:
            ValueError: If that is not a run folder.
        """
        path = self.config.get("init_from")
        if path is None:
            return None
        for folder in (Path(path), *Path(path).parents[:2]):  # the run itself, its model/, or one of its checkpoints/
            if (folder / "config.yaml").is_file():
                return folder
        raise ValueError(
            f"{self.folder}: it started from {path}, which is not in a run folder; draw it alone with join=false"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Runs that differ in their seeds alone.

    Attributes:
        runs: One or more.
        differences: Value here and value in the baseline, by key; empty for the baseline.
        label: A short name.
        is_baseline: Whether the others are compared with this one.
    """

    runs: Sequence[Run]
    differences: Mapping[str, tuple[Any, Any]]
    label: str
    is_baseline: bool

    @property
    def title(self) -> str:
        """The label, and whether it is the baseline."""
        return f"{self.label} (baseline)" if self.is_baseline else self.label


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """The folders that names and patterns such as `runs/abl-*` mean, in that order, each once.

    Raises:
        FileNotFoundError: If a name or pattern fits no run folder.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        # A name with brackets in it would not be found as a pattern.
        paths = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern))  # noqa: PTH207 (absolute ones too)
        folders = [Path(path) for path in paths if (Path(path) / "config.yaml").is_file()]
        if not folders:
            raise FileNotFoundError(f"{pattern}: no run folder, which has a config.yaml; name one under runs/")
        found |= dict.fromkeys(folders)
    return list(found)


def read_run(folder: Path) -> Run:
    """Reads what a run was told and how far it came.

    Raises:
        FileNotFoundError: If it is no run folder.
        ValueError: If its config has no seed.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no run folder, which has a config.yaml; name one under runs/")
    config = flat(OmegaConf.to_container(OmegaConf.load(path)))
    if "seed" not in config:
        raise ValueError(f"{path}: no seed, so this is not the config of a training run; name a folder under runs/")
    known = [read_training(model) for model in (folder / "model", *folder.glob("checkpoints/step-*"))]
    newest = max(filter(None, known), key=lambda each: each[0], default=None)
    steps, seconds, parameters = newest or (0, 0.0, None)
    return Run(folder=folder, config=config, steps=steps, seconds=seconds, parameters=parameters)


def read_training(model: Path) -> tuple[int, float, int] | None:
    """Steps, seconds and number of weights of a model folder; None where there is no model."""
    if not (model / "config.json").is_file():
        return None
    training = json.loads((model / "config.json").read_text(encoding="utf-8"))["training"]
    parameters = 0
    with safe_open(model / "model.safetensors", framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 (it is no mapping)
            size = 1
            for length in weights.get_slice(name).get_shape():
                size *= length
            parameters += size
    return training["steps"], training["seconds"], parameters


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as `a.b.c`; lists are values."""
    if not isinstance(config, dict):
        return {prefix.removesuffix("."): config}
    return {key: value for name, part in config.items() for key, value in flat(part, f"{prefix}{name}.").items()}


def differences(run: Run, baseline: Run) -> dict[str, tuple[Any, Any]]:
    """The settings that two runs do not share, beside seeds and names: value of the run, value of the baseline.

    A key that only one of them knows counts as switched off in the other (null, 0, false or empty), because settings
    that are added to the project leave runs of before as they were.
    """
    keys = [*baseline.config, *(key for key in run.config if key not in baseline.config)]
    found = {}
    for key in keys:
        ours, theirs = run.config.get(key), baseline.config.get(key)
        if key != "seed" and key not in _NO_DIFFERENCE and ours != theirs and (ours or theirs):
            found[key] = ours, theirs
    return found


def group(runs: Sequence[Run], *, baseline: Run, labels: Mapping[str, str] | None = None) -> list[Setting]:
    """Puts runs that differ in their seeds alone together; the baseline's setting comes first.

    Args:
        runs: Each once; the baseline may be among them.
        baseline: What the others are compared with.
        labels: Names for settings, by the name of the folder of one of their runs.

    Raises:
        ValueError: If a label is for a run that is not there, or two settings get the same.
    """
    groups: list[list[Run]] = [[baseline]]
    for run in runs:
        if run.folder.resolve() == baseline.folder.resolve():
            continue
        same = next((each for each in groups if not differences(run, each[0])), None)
        if same is None:
            groups.append([run])
        else:
            same.append(run)
    labels = labels or {}
    unknown = set(labels) - {run.folder.name for each in groups for run in each}
    if unknown:
        raise ValueError(f"labels has {min(unknown)!r}, but no run's folder has that name; take it out")
    found = [differences(each[0], baseline) for each in groups]
    used = list(dict.fromkeys(key for each in found for key in each))
    names = [
        next((labels[run.folder.name] for run in each if run.folder.name in labels), None)
        or _label(each, used if each[0] is baseline else list(changed), used)
        for each, changed in zip(groups, found, strict=True)
    ]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two settings are called {twice!r}; name them, labels=[FOLDER: NAME]")
    return [
        Setting(runs=sorted(each, key=lambda run: run.seed), differences=changed, label=name, is_baseline=number == 0)
        for number, (each, changed, name) in enumerate(zip(groups, found, names, strict=True))
    ]


def _label(runs: Sequence[Run], keys: Sequence[str], used: Sequence[str]) -> str:
    """`width=96, num_heads=4`, with the last parts of keys where they tell them apart; of many keys, the runs' name."""
    last = Counter(key.rpartition(".")[2] for key in used)
    names = {key: key if last[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in keys}
    label = ", ".join(f"{name}={text(runs[0].config.get(key))}" for key, name in names.items())
    if label and len(keys) <= _MOST_IN_LABEL and len(label) <= _LONGEST_LABEL:
        return label
    if len(runs) == 1:
        return runs[0].folder.name
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*(run.folder.name for run in runs), strict=False))
    return _BEFORE_SEED.sub("", "".join(letter for letter, *_ in shared)) or runs[0].folder.name


def text(value: Any) -> str:
    """A setting's value as the command line takes it; a dash where it is not set."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(text, value))}]" if isinstance(value, list) else str(value)
