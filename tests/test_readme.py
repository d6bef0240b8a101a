"""Every command that the README shows is one that exists and is understood."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from asr.cli import build_parser

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes"))
import schema  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ ").split("  #")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 10


def check_recipe(words: list[str]) -> None:
    """A recipe exists, and takes these overrides; of a sweep (-m), the first of each."""
    script, overrides = words[0], words[1:]
    if "-m" in overrides:
        overrides = [re.sub(r"=([^\[,]*),.*", r"=\1", each) for each in overrides if each != "-m"]
    assert (ROOT / script).is_file()
    schema.register()
    importlib.import_module(Path(script).stem)  # a recipe may have dataclasses of its own
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(Path(script).stem, overrides=overrides)
    OmegaConf.to_object(config)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_shown_command_is_understood(command):
    words = shlex.split(re.split(r" \| | && ", command)[-1])
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif words[0].endswith("asr"):
        assert build_parser().parse_args(words[1:]).run
    elif words[0] == "python":
        check_recipe(words[1:])
    elif words[0] == "torchrun":
        check_recipe([word for word in words[1:] if not word.startswith("--")])
    else:
        assert words[0] == "tensorboard"


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_a_linked_file_exists(link):
    assert (ROOT / link).exists()
