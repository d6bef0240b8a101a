"""Model folders: what is saved is loaded, damage is told in one line, and a failed save leaves all as it was."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from asr import checkpoint
from asr.checkpoint import ModelConfig, TrainingState
from asr.features import FeatureConfig
from asr.tensor_files import write_tensors
from asr.tokenizer import BpeTokenizer, Tokenizer


def save(folder: Path, *, value: float = 0.0, state: TrainingState | None = None) -> None:
    """Saves a checkpoint whose weights are one number."""
    checkpoint.save(
        folder,
        {"weight": torch.full((2,), value)},
        config=ModelConfig(),
        tokenizer=tiny.make_tokenizer(),
        training={},
        state=state,
    )


def value_of(folder: Path) -> float:
    return float(checkpoint.load_weights(folder)["weight"][0])


@pytest.fixture
def damaged(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, for a test to damage."""
    return shutil.copytree(tiny_folder, tmp_path / "damaged")


# Saving and loading


def test_a_loaded_model_gives_the_output_of_the_saved_one(tiny_folder: Path) -> None:
    original, loaded = tiny.make_loaded(), checkpoint.load(tiny_folder)
    waveforms, lengths = tiny.pad([tiny.noise(3000), tiny.noise(1200, seed=1)])
    tokens = torch.tensor([[1, 2, 3], [1, 4, 4]])
    outputs = []
    for model in (original.model, loaded.model):
        encoded = model.encode(waveforms, lengths)
        assert model.decoder is not None
        logits = model.decoder(tokens, encoded.frames, encoded.lengths)
        outputs.append((encoded.frames, model.ctc_log_probs(encoded.frames), logits))
    for before, after in zip(*outputs, strict=True):
        assert torch.equal(before, after)


def test_a_folder_alone_rebuilds_everything(tiny_folder: Path) -> None:
    original, loaded = tiny.make_loaded(), checkpoint.load(tiny_folder)
    assert loaded.config == original.config
    assert loaded.tokenizer.to_dict() == original.tokenizer.to_dict()
    assert loaded.training == {"steps": 3}
    assert loaded.path == tiny_folder
    assert loaded.sample_rate == tiny.SAMPLE_RATE
    assert loaded.device == torch.device("cpu")
    assert not loaded.model.training


def test_a_folder_holds_weights_and_readable_json_and_no_pickle(tiny_folder: Path) -> None:
    assert sorted(file.name for file in tiny_folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((tiny_folder / "config.json").read_text())["encoder"]["width"] == tiny.WIDTH


@pytest.mark.skipif(os.name == "nt", reason="there, files have no such modes")
def test_whoever_may_read_new_files_may_read_the_weights(tmp_path: Path) -> None:
    save(tmp_path / "model")
    (tmp_path / "plain").touch()
    for file in (tmp_path / "model").iterdir():
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode, file


def test_a_model_without_decoder_is_saved_and_loaded(tmp_path: Path) -> None:
    assert checkpoint.load(tiny.save(tmp_path / "ctc", num_decoder_layers=0)).model.decoder is None


def test_a_bpe_tokenizer_is_stored_with_the_model(tmp_path: Path) -> None:
    tokenizer = BpeTokenizer.train(["see the sea", "the seat"], vocab_size=14)
    config = tiny.make_config()
    weights = checkpoint.build_model(config, tokenizer).state_dict()
    checkpoint.save(tmp_path / "bpe", weights, config=config, tokenizer=tokenizer, training={})
    loaded = checkpoint.load(tmp_path / "bpe").tokenizer
    assert loaded.encode("the sea") == tokenizer.encode("the sea")


def test_weights_in_half_precision_are_loaded_in_single(tmp_path: Path) -> None:
    original = tiny.make_loaded()
    weights = {name: tensor.bfloat16() for name, tensor in original.model.state_dict().items()}
    checkpoint.save(tmp_path / "m", weights, config=original.config, tokenizer=original.tokenizer, training={})
    assert next(checkpoint.load(tmp_path / "m").model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_may_be_saved_in_half_precision(tiny_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    original = checkpoint.load(tiny_folder)
    checkpoint.save(
        tmp_path / "half",
        original.model.state_dict() | {"steps": torch.tensor([3])},
        config=original.config,
        tokenizer=original.tokenizer,
        training={},
        dtype=dtype,
    )
    stored = checkpoint.load_weights(tmp_path / "half")
    assert stored.pop("steps").dtype == torch.int64
    for name, tensor in original.model.state_dict().items():
        assert stored[name].dtype == dtype
        assert torch.equal(stored[name], tensor.to(dtype))
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.7 * (
        tiny_folder / "model.safetensors"
    ).stat().st_size


def test_weights_in_eight_bits_take_a_quarter_and_load_close_to_what_they_were(
    tiny_folder: Path, tmp_path: Path
) -> None:
    original = checkpoint.load(tiny_folder)
    weights = original.model.state_dict()
    checkpoint.save(
        tmp_path / "small",
        weights,
        config=original.config,
        tokenizer=original.tokenizer,
        training={},
        dtype=torch.int8,
    )
    # Versions that do not know such weights say so.
    assert json.loads((tmp_path / "small" / "config.json").read_text())["format"] == 2
    loaded = checkpoint.load(tmp_path / "small").model.state_dict()
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] if tensor.ndim else tensor[None, None]
        step = rows.abs().amax(dim=1, keepdim=True) / 127
        assert ((loaded[name].view_as(rows) - rows).abs() <= 0.51 * step).all(), name
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "small", tiny_folder)]
    assert sizes[0] < 0.6 * sizes[1]  # names and vectors weigh much in a model this small


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"m": torch.ones(3, 2, dtype=torch.int8), "m.row_scales": torch.ones(2)}, "m has 3 rows, but 2 scales"),
        ({"m": torch.ones(3, 2, dtype=torch.int8)}, "m has torch.int8, without scales of its rows"),
        ({"m": torch.ones(3, 2), "m.row_scales": torch.ones(3)}, "m has torch.float32, with scales of its rows"),
        ({"m.row_scales": torch.ones(3)}, "there is m.row_scales, but nothing that it belongs to"),
    ],
)
def test_scales_that_are_missing_or_of_another_matrix_are_told(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError) as caught:
        checkpoint.load_weights(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'model.safetensors'}: {message}"


def test_a_weight_too_large_for_half_precision_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        checkpoint.save(
            tmp_path / "half",
            {"fine": torch.ones(2), "scale": torch.tensor([1.0, -70000.0])},
            config=ModelConfig(),
            tokenizer=tiny.make_tokenizer(),
            training={},
            dtype=torch.float16,
        )
    assert str(caught.value) == ("scale has the weight 70000, too large for torch.float16; store it in torch.float32")
    assert list(tmp_path.iterdir()) == []


def test_a_frame_lasts_whole_samples_where_the_hop_is_none() -> None:
    loaded = tiny.make_loaded()
    assert loaded.frame_s == pytest.approx(0.04)
    loaded.config.features = FeatureConfig(sample_rate=22050, num_fft=1024, high_hz=8000)
    assert loaded.frame_s == pytest.approx(4 * 220 / 22050), "10 ms are 220.5 samples there"


def test_a_training_state_comes_back(tmp_path: Path) -> None:
    state = TrainingState(tensors={"moment": torch.arange(3)}, state={"step": 7, "loss": 0.5})
    save(tmp_path / "c", value=2.0, state=state)
    weights, loaded = checkpoint.load_training(tmp_path / "c")
    assert weights["weight"].tolist() == [2.0, 2.0]
    assert loaded.tensors["moment"].tolist() == [0, 1, 2]
    assert loaded.state == {"step": 7, "loss": 0.5}
    tokenizer, config = checkpoint.load_tokenizer_and_config(tmp_path / "c")
    assert isinstance(tokenizer, Tokenizer) and config == ModelConfig()


def test_saving_again_replaces_the_folder_whole(tmp_path: Path) -> None:
    save(tmp_path / "c", value=1.0, state=TrainingState(tensors={"a": torch.zeros(1)}, state={}))
    save(tmp_path / "c", value=2.0)
    assert value_of(tmp_path / "c") == 2.0
    assert not (tmp_path / "c" / "training.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


# A save that fails


def test_a_full_disk_leaves_the_older_folder_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "c", value=1.0)

    def no_space(path: Path, _: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", no_space)
    with pytest.raises(OSError) as caught:
        save(tmp_path / "c", value=2.0)
    assert str(caught.value) == (
        f"{tmp_path / 'c'}: cannot be saved (No space left on device); earlier checkpoints are as they were"
    )
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path / "new")
    assert value_of(tmp_path / "c") == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_limit_of_the_system_leaves_the_older_folder_and_nothing_else(tmp_path: Path) -> None:
    """The operating system itself refuses here, in the middle of the file of the weights."""
    save(tmp_path / "c", value=1.0)
    weights = {"weight": torch.ones(100_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError) as caught:
            checkpoint.save(tmp_path / "c", weights, config=ModelConfig(), tokenizer=tiny.make_tokenizer(), training={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'c'}: cannot be saved (") and "File too large" in message
    assert "\n" not in message
    assert value_of(tmp_path / "c") == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    save(tmp_path / "c", value=1.0)

    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "_write_json", interrupted)
    with pytest.raises(type(error)):
        save(tmp_path / "c", value=2.0)
    assert value_of(tmp_path / "c") == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_folder_that_cannot_take_its_name_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "c", value=1.0)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name.endswith(".writing"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match=r"cannot be saved \(Input/output error\); earlier checkpoints are as they were$"):
        save(tmp_path / "c", value=2.0)
    assert value_of(tmp_path / "c") == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_folder_below_a_file_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/c: cannot be saved \(Not a directory\)"):
        save(tmp_path / "file" / "c")


# Damage


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def rewrite(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("weights cut short", cut_weights, r"model\.safetensors: cut short or damaged \(.+\); copy it again"),
    ("header cut short", cut_header, r"model\.safetensors: cut short or damaged \(.+\); copy it again"),
    (
        "empty weights",
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        r"model\.safetensors: cut short or damaged \(.+\); copy it again or use another checkpoint$",
    ),
    (
        "broken config",
        lambda folder: (folder / "config.json").write_text('{"format": 1,'),
        r"config\.json: not valid JSON \(.+\); copy it again or use another checkpoint$",
    ),
    (
        "config in a foreign encoding",
        lambda folder: (folder / "config.json").write_bytes(b'{"format": "\xff"}'),
        r"config\.json: not valid JSON \(.+\); copy it again or use another checkpoint$",
    ),
    (
        "config without an object",
        lambda folder: (folder / "config.json").write_text("[1]"),
        r"config\.json: holds no JSON object; copy it again or use another checkpoint$",
    ),
    (
        "newer format",
        lambda folder: rewrite(folder, "config.json", lambda config: config.update(format=3)),
        r"config\.json: format 3, but this version reads formats 1 and 2; update the package$",
    ),
    (
        "config without encoder",
        lambda folder: rewrite(folder, "config.json", lambda config: config.pop("encoder")),
        r"config\.json: not the config of a model of this toolkit \('encoder'\)$",
    ),
    (
        "config with a foreign key",
        lambda folder: rewrite(folder, "config.json", lambda config: config["encoder"].update(dephth=3)),
        r"config\.json: not the config of a model of this toolkit \(.*'dephth'\)$",
    ),
    (
        "config out of range",
        lambda folder: rewrite(folder, "config.json", lambda config: config["encoder"].update(num_heads=3)),
        r"config\.json: not the config .* \(encoder\.width 16 is not a multiple of encoder\.num_heads 3\)$",
    ),
    (
        "wrong sizes",
        lambda folder: rewrite(folder, "config.json", lambda config: config["encoder"].update(feedforward_width=48)),
        r"model\.safetensors: the weights do not fit config\.json and tokenizer\.json: .*size mismatch",
    ),
    (
        "another tokenizer",
        lambda folder: rewrite(folder, "tokenizer.json", lambda tokenizer: tokenizer["tokens"].append("z")),
        r"model\.safetensors: the weights do not fit config\.json and tokenizer\.json: .*size mismatch",
    ),
    (
        "broken tokenizer",
        lambda folder: (folder / "tokenizer.json").write_text(""),
        r"tokenizer\.json: not valid JSON \(.+\); copy it again or use another checkpoint$",
    ),
    (
        "tokenizer of another kind",
        lambda folder: rewrite(folder, "tokenizer.json", lambda tokenizer: tokenizer.update(kind="word")),
        r"tokenizer\.json: unknown kind of tokenizer 'word'; expected 'char' or 'bpe'$",
    ),
    (
        "tokenizer of numbers",
        lambda folder: rewrite(folder, "tokenizer.json", lambda tokenizer: tokenizer.update(tokens=[0, 1, 2])),
        r"tokenizer\.json: ",
    ),
]


@pytest.mark.parametrize(("damage", "message"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE])
def test_damage_is_told_in_one_line_that_begins_with_the_file(
    damaged: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(damaged)
    with pytest.raises(ValueError, match=rf"^{damaged}/{message}") as caught:
        checkpoint.load(damaged)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    assert text.count(str(damaged)) == 1, "the file is named once"


def test_a_missing_tokenizer_is_named(damaged: Path) -> None:
    (damaged / "tokenizer.json").unlink()
    message = rf"^{damaged}/tokenizer\.json: no such file; the folder is not a complete checkpoint$"
    with pytest.raises(FileNotFoundError, match=message):
        checkpoint.load(damaged)


@pytest.mark.parametrize("file", ["training.safetensors", "training.json"])
def test_a_training_checkpoint_needs_all_of_its_files(tmp_path: Path, file: str) -> None:
    save(tmp_path / "c", state=TrainingState(tensors={"a": torch.zeros(1)}, state={}))
    (tmp_path / "c" / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file}: no such file; the folder is not a complete checkpoint$"):
        checkpoint.load_training(tmp_path / "c")


# Finding a model


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    tiny.save(tmp_path / "run" / "model")
    assert checkpoint.find_model(tmp_path / "run") == tmp_path / "run" / "model"
    assert checkpoint.find_model(tmp_path / "run" / "model") == tmp_path / "run" / "model"
    assert checkpoint.load(tmp_path / "run").path == tmp_path / "run" / "model"


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    message = rf"^{tmp_path}/no: no such model; give a model folder or the folder of a finished run$"
    with pytest.raises(FileNotFoundError, match=message):
        checkpoint.load(tmp_path / "no")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", None])
def test_a_folder_without_a_model_says_what_it_lacks(damaged: Path, tmp_path: Path, file: str | None) -> None:
    folder = tmp_path if file is None else damaged
    if file is not None:
        (damaged / file).unlink()
    message = (
        rf"^{folder}: holds no model \(model\.safetensors beside config\.json, here or under model/\); "
        r"give a folder of checkpoints/ if the run has not finished$"
    )
    with pytest.raises(FileNotFoundError, match=message):
        checkpoint.load(folder)


# Averaging


def test_the_average_is_the_mean_of_every_tensor() -> None:
    states = [{"a": torch.tensor([1.0, n]), "b": torch.full((2, 2), -n)} for n in (1.0, 2.0, 6.0)]
    mean = checkpoint.average(states)
    assert mean["a"].tolist() == [1.0, 3.0]
    assert mean["b"].tolist() == [[-3.0, -3.0]] * 2
    assert mean["a"].dtype == torch.float32


def test_states_have_their_shares_in_the_average() -> None:
    states = [{"a": torch.tensor([0.0])}, {"a": torch.tensor([1.0])}]
    assert float(checkpoint.average(states, shares=[3, 1])["a"]) == 0.25
    with pytest.raises(ValueError, match=r"^the share 0 is not above 0; leave out what shall have none$"):
        checkpoint.average(states, shares=[1, 0])


def test_the_average_of_one_is_that_one() -> None:
    state = tiny.make_model().state_dict()
    for name, tensor in checkpoint.average([state]).items():
        assert torch.equal(tensor, state[name])


def test_the_average_is_summed_in_double_precision() -> None:
    states = [{"a": torch.tensor([value])} for value in (1e8, 1.0, -1e8)]
    assert float(checkpoint.average(states)["a"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "there are no checkpoints to average"),
        (
            [{"a": torch.zeros(2)}, {"b": torch.zeros(2)}],
            "the checkpoints to average are not of one model: their tensors differ in name or shape",
        ),
        (
            [{"a": torch.zeros(2)}, {"a": torch.zeros(3)}],
            "the checkpoints to average are not of one model: their tensors differ in name or shape",
        ),
    ],
)
def test_what_cannot_be_averaged_is_an_error(states: list[dict[str, torch.Tensor]], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        checkpoint.average(states)
    assert str(caught.value) == message
