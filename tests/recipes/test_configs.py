"""Every YAML file under conf/ composes and builds, says what it is for, and misuse gives one clear line."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
import yaml
from hydra.errors import HydraException

from asr import checkpoint
from asr.augment import SpecAugment
from asr.tokenizer import CharTokenizer
from asr.training.optim import learning_rate

CONF = launching.CONF
RECIPES = sorted(path.stem for path in CONF.glob("*.yaml"))
OPTIONS = sorted(str(path.relative_to(CONF).with_suffix("")) for path in CONF.glob("*/*.yaml"))
EXPERIMENTS = [option.removeprefix("experiment/") for option in OPTIONS if option.startswith("experiment/")]
# What has no default and must be given.
REQUIRED = {
    "evaluate": ["model=runs/x", "manifests=[a.jsonl]"],
    "transcribe": ["model=runs/x", "inputs=[a.flac]"],
    "picture": ["model=runs/x", "audio=a.flac"],
    "benchmark": ["model=runs/x", "manifest=a.jsonl"],
    "tune_decoding": ["model=runs/x", "manifest=a.jsonl"],
    "train_lm": ["recognizer=runs/x", "texts=[a.txt]"],
    "average_models": ["models=[runs/x,runs/y]", "output=runs/z"],
    "pseudo_label": ["model=runs/x", "inputs=[a]", "output=b.jsonl"],
    "train_ngram": ["texts=[a.txt]", "output=a.arpa"],
    "train_speller": [
        *("recognizer=runs/x", "lexicon=a.txt", "train=[a.jsonl]", "texts=[a.txt]", "init_from=runs/lm"),
    ],
    "word_times": ["model=runs/x"],
    "disturb": ["manifest=a.jsonl", "output=noisy", "disturbance.num_talkers=6"],
}


def groups(recipe: str) -> dict[str, str]:
    """The groups in the defaults list of a recipe, and what each is a part of: `augment@hearing.augment` is that of
    `hearing.augment`."""
    defaults = yaml.safe_load((CONF / f"{recipe}.yaml").read_text(encoding="utf-8"))["defaults"]
    keys = [key for entry in defaults if isinstance(entry, dict) for key in entry if not key.startswith("override ")]
    return {key.partition("@")[0]: key.partition("@")[2] or key for key in keys}


def uses() -> list[tuple[str, str]]:
    """Every recipe with every option of every group that it takes."""
    return [
        (recipe, option)
        for recipe in RECIPES
        for option in OPTIONS
        if option.split("/")[0] in groups(recipe) and not option.startswith("experiment/")
    ]


def plain(value: Any) -> bool:
    """Whether a config is made of dataclasses and builtin types alone, down to its leaves."""
    if is_dataclass(value):
        return all(plain(getattr(value, name)) for name in value.__dataclass_fields__)
    if isinstance(value, list):
        return type(value) is list and all(map(plain, value))
    return value is None or type(value) in (int, float, str, bool) or isinstance(value, Path)


def test_every_file_is_a_recipe_or_an_option_of_a_group_that_some_recipe_takes():
    files = {str(path.relative_to(CONF).with_suffix("")) for path in CONF.rglob("*") if path.is_file()}
    assert files == set(RECIPES) | set(OPTIONS)
    assert {option.split("/")[0] for option in OPTIONS} == {group for recipe in RECIPES for group in groups(recipe)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_of_conf_is_a_script_and_its_first_line_says_so(recipe):
    script = f"recipes/{recipe}.py"
    assert (CONF.parent / script).is_file()
    first = (CONF / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# {script}: ")


@pytest.mark.parametrize(("recipe", "option"), uses())
def test_every_option_composes_in_every_recipe_that_takes_it(compose, recipe, option):
    group, choice = option.split("/")
    part = groups(recipe)[group]
    config = compose(recipe, f"{group if part == group else f'{group}@{part}'}={choice}", *REQUIRED.get(recipe, []))
    assert plain(config)
    assert is_dataclass(attrgetter(part)(config))


@pytest.mark.parametrize("option", [option for option in OPTIONS if not option.startswith("experiment/")])
def test_the_first_line_of_every_option_says_what_it_is(option):
    first = (CONF / f"{option}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# \S.{5,}", first)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("data/")])
def test_the_name_of_a_corpus_is_the_name_of_its_file(compose, option):
    name = option.removeprefix("data/")
    config = compose("prepare", f"data={name}").data
    assert (config.name, config.manifests) == (name, Path("manifests") / name)


def test_the_root_of_the_corpora_comes_from_the_environment(compose, monkeypatch):
    monkeypatch.setenv("ASR_DATA", "/corpora")
    assert compose("prepare", "data=an4").data.root == Path("/corpora")
    assert compose("prepare", "data=an4", "data.root=/mine").data.root == Path("/mine")
    monkeypatch.delenv("ASR_DATA")
    assert compose("prepare", "data=an4").data.root == Path("data")


def build(config: Any, *, vocab_size: int) -> torch.nn.Module:
    """The model of a training config, without its weights."""
    shape = checkpoint.ModelConfig(features=config.features, encoder=config.encoder, decoder=config.decoder)
    with torch.device("meta"):
        return checkpoint.build_model(shape, CharTokenizer([chr(0x4E00 + index) for index in range(vocab_size - 2)]))


@pytest.mark.parametrize("encoder", sorted(path.stem for path in (CONF / "encoder").glob("*.yaml")))
def test_encoder_and_decoder_of_a_size_have_about_that_many_parameters(compose, encoder):
    kind, size = encoder.split("_")
    config = compose("train", f"encoder={encoder}", f"decoder=transformer_{size}")
    assert config.encoder.block == kind
    millions = build(config, vocab_size=30 if size == "1m" else 500).num_parameters() / 1e6
    assert millions == pytest.approx(int(size.removesuffix("m")), rel=0.4 if size == "1m" else 0.12)


@pytest.mark.parametrize("size", sorted(path.stem.split("_")[1] for path in (CONF / "encoder").glob("ebranch*.yaml")))
def test_an_e_branchformer_is_as_large_as_the_conformer_of_its_name(compose, size):
    decoder = f"decoder=transformer_{size}"
    ours, conformer = (
        build(compose("train", f"encoder={kind}_{size}", decoder), vocab_size=30).num_parameters()
        for kind in ("ebranchformer", "conformer")
    )
    assert ours == pytest.approx(conformer, rel=0.03)


# Experiments


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_begins_with_the_command_that_runs_it(name):
    first, second = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:2]
    assert first == "# @package _global_"
    assert re.fullmatch(rf"# python recipes/train\.py experiment={name}( \w+(\.\w+)*=\S+)*", second)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_and_builds_and_its_settings_fit_together(compose, name):
    config = compose("train", f"experiment={name}")
    assert config.name == name
    assert name.startswith(config.data.name) or config.init_from
    assert config.data.train
    assert config.data.test
    assert config.data.valid or config.data.holdout_utterances or name == "synthetic"
    model = build(config, vocab_size=config.tokenizer.vocab_size or 30)
    assert model.num_parameters() > 100_000
    SpecAugment(config.augment.spec, frame_s=config.features.hop_ms / 1000)
    # The longest utterance that is let in fits a batch at the slowest speed.
    assert config.loader.max_duration_s / min(config.augment.speeds) <= config.loader.max_batch_s
    assert bool(config.loss.intermediate_weight) == bool(config.encoder.intermediate_layers)
    assert config.decoder.num_layers or (config.loss.ctc_weight == 1 and config.decoding.mode == "greedy")
    assert config.optim.warmup_steps < config.trainer.max_steps / 2
    steps = config.trainer.max_steps
    assert 0 < learning_rate(config.optim, steps, max_steps=steps) < config.optim.lr
    assert steps >= 3 * config.trainer.valid_every


def test_without_an_experiment_a_run_has_a_name_of_its_own_and_the_embedded_corpus(compose):
    config = compose("train")
    assert (config.name, config.data.name) == ("default", "synthetic")


# Misuse


def run_train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONF.parent / "recipes" / "train.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder.widht=3", "error: Key 'widht' not in 'EncoderConfig'; full_key: encoder.widht"),
        ("trainer.average=swa", "error: trainer.average is 'swa'; choose one of ema, best, none"),
    ],
)
def test_misuse_on_the_command_line_is_one_line_on_standard_error_and_exit_code_1(tmp_path, override, message):
    done = run_train(tmp_path, override)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [message]
    assert done.stdout == ""
    assert not (tmp_path / "runs" / "synthetic" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("train", "encoder.width=wide", "Value 'wide' of type 'str' could not be converted to Integer"),
        ("train", "trainer.max_steps=1.5", "Value '1.5' of type 'float' could not be converted to Integer"),
        ("train", "augment.speeds=[fast]", "Value 'fast' of type 'str' could not be converted to Float"),
        ("train", "data.train=yes", "Invalid value assigned: str is not a ListConfig, list or tuple"),
        ("train", "nothing.at.all=2", "Key 'nothing' not in 'TrainRecipe'"),
        ("train", "data.hours_trian=2", "Key 'hours_trian' not in 'SyntheticConfig'"),
        ("train", "encoder=huge", "Could not find 'encoder/huge' Available options in 'encoder': conformer_10m"),
        ("train", "experiment=tiny", "Available options in 'experiment': an4 "),
        ("train", "+encoder.widht=3", "'EncoderConfig' object has no attribute 'widht'; take the + from the override"),
        ("train", "encoder.width=97", "encoder.width 97 is not a multiple of encoder.num_heads 4"),
        ("train", "encoder.block=ebranchformer", "encoder.cgmlp_width is 0; encoder.block=ebranchformer splits it"),
        ("train", "name", "Error parsing override 'name'; missing EQUAL"),
        ("evaluate", "decoding.mode=beam", "missing mandatory value: model"),
        ("transcribe", "model=runs/x", "missing mandatory value: inputs"),
    ],
)
def test_misuse_is_named_in_one_line(compose: Callable[..., Any], recipe, override, message):
    with pytest.raises((HydraException, launching.OmegaConfBaseException, ValueError)) as misuse:
        compose(recipe, override)
    line = launching._message(misuse.value)
    assert message in line
    assert "\n" not in line
