"""The recipe that averages the weights of models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import average_models
import pytest
import tiny
import torch

from asr import checkpoint
from asr.lm_checkpoint import load_language_model, save_language_model
from asr.nn.lm import LanguageModel, LanguageModelConfig


@pytest.fixture
def models(tmp_path: Path) -> str:
    """Two models of like sizes, and one of other sizes."""
    for seed in (1, 2):
        tiny.save(tmp_path / f"run{seed}" / "model", seed=seed)
    tiny.save(tmp_path / "other" / "model", num_decoder_layers=0)
    return f"models=[{tmp_path}/run1,{tmp_path}/run2]"


def test_the_weighted_mean_becomes_a_model(compose: Callable[..., Any], models, tmp_path, capsys):
    average_models.run(compose("average_models", models, "shares=[3,1]", f"output={tmp_path}/mean"))
    assert capsys.readouterr().out == f"{tmp_path}/mean/model\n"
    first, second, mean = (checkpoint.load_weights(tmp_path / name / "model") for name in ("run1", "run2", "mean"))
    for name, weight in mean.items():
        torch.testing.assert_close(weight, 0.75 * first[name] + 0.25 * second[name])
    training = checkpoint.load(tmp_path / "mean").training
    assert [each["share"] for each in training["average_of"]] == [3, 1]


def test_so_does_that_of_language_models(compose: Callable[..., Any], tmp_path):
    config = LanguageModelConfig(num_layers=1, width=8, num_heads=2, feedforward_width=16)
    models = [LanguageModel(config, vocab_size=tiny.make_tokenizer().vocab_size) for _ in range(2)]
    for number, model in enumerate(models):
        save_language_model(
            tmp_path / f"{number}",
            model.state_dict(),
            config=config,
            tokenizer=tiny.make_tokenizer(),
            training={"steps": 3, "seconds": 1.5},
        )
    average_models.run(compose("average_models", f"models=[{tmp_path}/0,{tmp_path}/1]", f"output={tmp_path}/mean"))
    other = LanguageModelConfig(num_layers=1, width=8, num_heads=1, feedforward_width=16)
    save_language_model(
        tmp_path / "2", models[0].state_dict(), config=other, tokenizer=tiny.make_tokenizer(), training={}
    )
    with pytest.raises(ValueError, match=r"/2 has other sizes than .*/0; only like models can be averaged"):
        average_models.run(compose("average_models", f"models=[{tmp_path}/0,{tmp_path}/2]", f"output={tmp_path}/no"))
    mean = load_language_model(tmp_path / "mean")
    first, second = (model.state_dict() for model in models)
    for name, weight in mean.model.state_dict().items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2)
    assert (mean.training["steps"], mean.training["seconds"]) == (6, 3.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["models=[a]"], r"models has 1 entries; name at least two"),
        (["shares=[1]"], r"shares has 1 entries, but there are 2 models"),
        (["shares=[1,0]"], r"run1, .*run2: the share 0 is not above 0"),
        (["models=[{0}/run1,{0}/other]"], r"/other has other sizes than .*/run1; only like models can be averaged"),
    ],
)
def test_misuse_is_told_in_one_line(compose: Callable[..., Any], models, tmp_path, changed, message):
    settings = [models, f"output={tmp_path}/mean", *(each.format(tmp_path) for each in changed)]
    with pytest.raises(ValueError, match=message):
        average_models.run(compose("average_models", *settings))
    assert not (tmp_path / "mean").exists()
