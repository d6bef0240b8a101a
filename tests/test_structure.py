"""The house: imports go down only, read from the source with `ast`, so a wrong one fails without being run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The room of a module is its first name below `asr`. Imports go to the same floor or down.
FLOORS: dict[str, int] = {
    "nn": 1,
    "features": 1,
    "audio": 1,
    "text": 1,
    "mp3": 1,
    "resampling": 1,
    "devices": 1,
    "errors": 1,
    "garbage": 1,
    "hub": 1,
    "tensor_files": 1,
    "quantization": 1,
    "compression": 1,
    "decoding": 2,
    "ctc_kernels": 2,
    "lattice_free": 2,
    "lattice_free_kernels": 2,
    "losses": 2,
    "evaluate": 2,
    "augment": 2,
    "tokenizer": 2,
    "pronunciation": 2,
    "report": 2,
    "transcript": 2,
    "confidence": 2,
    "phrase_recall": 2,
    "checkpoint": 3,
    "data": 3,
    "writers": 3,
    "recognition": 3,
    "variants": 3,
    "search_choice": 3,
    "model_figures": 3,
    "lm_checkpoint": 3,
    "speller_checkpoint": 3,
    "ngrams": 3,
    "transcriber": 4,
    "transcribe": 4,
    "evaluation_run": 4,
    "alignment": 4,
    "speech_model": 4,
    "tuning": 4,
    "pseudo_labels": 4,
    "training": 4,
    "cli": 5,
    "recipes": 5,
}

# Same floor or below, and forbidden all the same: losses and decoding are siblings, nothing that recognises trains, and
# the package works without the recipes, which are not installed with it.
FORBIDDEN: set[tuple[str, str]] = {
    ("losses", "decoding"),
    ("decoding", "losses"),
    *((room, "training") for room in FLOORS if room not in ("training", "recipes")),
    *((room, "recipes") for room in FLOORS if room != "recipes"),
}

CONFIGURATION_LIBRARIES = {"hydra", "omegaconf"}


def imported_modules(source: str) -> set[str]:
    """All modules that a source imports anywhere, in functions and for annotations too; `from asr import audio` is
    both `asr` and `asr.audio`."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            modules |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return modules


def room_of(path: Path) -> str:
    """`asr/nn/attention.py` is in the room nn; all of recipes/ is one room."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "recipes" else parts[1]


def rooms_of(modules: set[str]) -> set[str]:
    """The rooms that modules of `asr` and `recipes` lie in."""
    return {name.split(".")[1] for name in modules if name.startswith("asr.")} | {
        "recipes" for name in modules if name.split(".")[0] == "recipes"
    }


def complaints(room: str, source: str) -> list[str]:
    """What is wrong with the imports of a source that lies in a room."""
    modules = imported_modules(source)
    found = [f"imports {name} relatively; write the whole name" for name in sorted(modules) if name.startswith(".")]
    if room != "recipes":
        found += [
            f"imports {name}; only recipes/ may"
            for name in sorted({name.split(".")[0] for name in modules} & CONFIGURATION_LIBRARIES)
        ]
    for other in sorted(rooms_of(modules)):
        if other not in FLOORS:
            found.append(f"imports asr.{other}, which has no floor; give it one in FLOORS of {Path(__file__).name}")
        elif FLOORS[other] > FLOORS[room]:
            found.append(f"is on floor {FLOORS[room]} and imports {other} on floor {FLOORS[other]}; imports go down")
        elif (room, other) in FORBIDDEN:
            found.append(f"imports {other}, which {room} must not")
    return found


def sources() -> list[Path]:
    # asr/__init__.py is no room; it has a test of its own.
    files = [*(ROOT / "asr").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]
    return sorted(file for file in files if file != ROOT / "asr" / "__init__.py")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    assert room in FLOORS, f"{path.relative_to(ROOT)}: asr.{room} has no floor; give it one in FLOORS of this test"
    assert complaints(room, path.read_text(encoding="utf-8")) == []


def test_every_floor_is_in_use() -> None:
    assert set(FLOORS) == {room_of(path) for path in sources()}, "FLOORS names a room that is not there, or lacks one"


def test_the_package_itself_imports_what_it_offers_when_it_is_asked_for() -> None:
    code = """
import sys, asr
print(sorted({"torch", "numpy", "soundfile", "asr.speech_model"} & set(sys.modules)))
print(asr.load_model.__module__, asr.SpeechModel.__module__, hasattr(asr, "no_such_name"), asr.__all__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "[]",
        "asr.speech_model asr.speech_model False ['SpeechModel', 'load_model']",
    ]


@pytest.mark.parametrize(
    ("room", "source", "complaint"),
    [
        ("nn", "import asr.losses", "is on floor 1 and imports losses on floor 2; imports go down"),
        ("nn", "from asr.decoding.ctc import greedy_search", "is on floor 1 and imports decoding on floor 2"),
        ("nn", "def f():\n    from asr import data", "is on floor 1 and imports data on floor 3"),
        ("losses", "from asr.decoding import ctc", "imports decoding, which losses must not"),
        ("decoding", "import asr.losses as losses", "imports losses, which decoding must not"),
        ("transcribe", "from asr.training import trainer", "imports training, which transcribe must not"),
        ("cli", "from asr import training", "imports training, which cli must not"),
        ("cli", "import recipes.train", "imports recipes, which cli must not"),
        ("training", "import hydra", "imports hydra; only recipes/ may"),
        ("data", "from omegaconf import MISSING", "imports omegaconf; only recipes/ may"),
        ("nn", "from .masks import valid_mask", "imports .masks relatively; write the whole name"),
        ("cli", "from asr.brandnew import thing", "imports asr.brandnew, which has no floor; give it one in FLOORS"),
        ("nn", "from asr.features import LogMel", None),
        ("training", "from asr import audio, losses", None),
        ("recipes", "import hydra\nfrom asr.training import trainer", None),
    ],
)
def test_this_test_finds_what_it_is_for(room: str, source: str, complaint: str | None) -> None:
    found = complaints(room, source)
    if complaint is None:
        assert found == []
    else:
        assert any(complaint in each for each in found), found


def test_the_command_line_is_imported_without_torch() -> None:
    code = "import asr.cli, sys; print(sorted({'torch', 'numpy', 'soundfile'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
