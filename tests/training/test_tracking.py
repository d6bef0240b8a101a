"""Where curves, texts and pictures go, and the pictures themselves."""

import sys
from types import SimpleNamespace

import pytest
import tiny
import torch

from asr.augment import SpecAugment, SpecAugmentConfig
from asr.losses import LossConfig
from asr.training.task import RecognitionTask, pictures
from asr.training.tracking import NoTracker, make_tracker, picture


def test_tensorboard_events_hold_scalars_texts_and_images(tmp_path):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra `recipes` is not installed"
    )
    tracker = make_tracker("tensorboard", tmp_path)
    tracker.scalars({"train/loss": 1.5, "train/lr": 0.25}, step=3)
    tracker.scalars({"train/loss": 0.5}, step=7)
    tracker.text("valid/transcripts", "| a | b |", step=7)
    tracker.image("features/plain", torch.rand(3, 4, 6), step=7)
    tracker.close()

    (file,) = tmp_path.glob("events.out.tfevents.*")
    found = accumulators.EventAccumulator(str(file)).Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(3, 1.5), (7, 0.5)]
    assert [(event.step, event.value) for event in found.Scalars("train/lr")] == [(3, 0.25)]
    (text,) = found.Tensors("valid/transcripts/text_summary")
    assert (text.step, text.tensor_proto.string_val) == (7, [b"| a | b |"])
    (image,) = found.Images("features/plain")
    assert (image.step, image.height, image.width) == (7, 4, 6)


def test_none_writes_nothing(tmp_path):
    tracker = make_tracker("none", tmp_path)
    assert isinstance(tracker, NoTracker)
    tracker.scalars({"x": 1.0}, step=1)
    tracker.text("x", "y", step=1)
    tracker.image("x", torch.rand(3, 2, 2), step=1)
    tracker.close()
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="tracking is 'mlflow'; choose one of tensorboard, wandb, none"):
        make_tracker("mlflow", tmp_path)


@pytest.mark.parametrize(
    ("kind", "module", "message"),
    [
        ("wandb", "wandb", r"tracking=wandb needs wandb \(.+\); pip install wandb, or tracking=tensorboard"),
        (
            "tensorboard",
            "torch.utils.tensorboard",
            r"tracking=tensorboard needs TensorBoard \(.+\); pip install tensorboard, or tracking=none",
        ),
    ],
)
def test_a_library_that_is_missing_is_named_with_the_way_out(tmp_path, monkeypatch, kind, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        make_tracker(kind, tmp_path)


def test_wandb_is_told_everything_and_a_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    calls: list[tuple] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append(("finished",))
    )
    fake = SimpleNamespace(
        init=lambda **settings: calls.append(("init", settings)) or run,
        Html=lambda text: ("html", text),
        Image=lambda array: ("image", array.shape),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = make_tracker("wandb", tmp_path / "an4")
    tracker.scalars({"train/loss": 1.5}, step=3)
    tracker.text("valid/transcripts", "a < b", step=4)
    tracker.image("features/plain", torch.rand(3, 4, 6), step=5)
    tracker.close()
    settings = {"dir": str(tmp_path / "an4"), "name": "an4", "id": "an4", "project": "asr", "resume": "allow"}
    assert calls == [
        ("init", settings),
        (3, {"train/loss": 1.5}),
        (4, {"valid/transcripts": ("html", "<pre>a &lt; b</pre>")}),
        (5, {"features/plain": ("image", (4, 6, 3))}),
        ("finished",),
    ]


def test_wandb_offline_writes_a_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "an4"
    folder.mkdir()
    tracker = make_tracker("wandb", folder)
    tracker.scalars({"train/loss": 1.5}, step=3)
    tracker.text("valid/transcripts", "| a | b |", step=3)
    tracker.image("features/plain", torch.rand(3, 4, 6), step=3)
    tracker.close()
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))


# Pictures


def test_a_picture_runs_from_dark_to_light_with_row_0_at_the_top():
    image = picture(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
    assert image.shape == (3, 2, 3)
    lightness = image.sum(dim=0).flatten()
    assert torch.equal(lightness, lightness.sort().values)
    assert torch.allclose(image[:, 0, 0], torch.tensor([0.05, 0.03, 0.25]))
    assert torch.allclose(image[:, 1, 2], torch.tensor([0.99, 0.95, 0.60]))


def test_every_cell_of_a_picture_is_a_square_of_its_scale():
    values = torch.rand(2, 3)
    large, small = picture(values, scale=3), picture(values)
    assert large.shape == (3, 6, 9)
    assert torch.equal(large[:, 1::3, 1::3], small)
    assert torch.equal(large[:, 0::3, 2::3], small)


@pytest.mark.parametrize("values", [torch.zeros(2, 2), torch.full((1, 1), -7.0), torch.rand(3, 3).bfloat16() * 1e4])
def test_any_range_of_values_gives_colours_in_range(values):
    image = picture(values)
    assert image.isfinite().all()
    assert 0 <= image.min() <= image.max() <= 1


@pytest.fixture
def task() -> RecognitionTask:
    config = SpecAugmentConfig(num_time_masks=2, time_mask_width=10, num_frequency_masks=2, frequency_mask_width=6)
    return RecognitionTask(tiny.make_model(), loss=LossConfig(), spec_augment=SpecAugment(config)).eval()


def test_four_pictures_of_an_utterance_show_features_and_attention(task):
    images = pictures(task, tiny.noise(4000), tokens=[3, 2, 4])
    assert {name: tuple(image.shape) for name, image in images.items()} == {
        "features/plain": (3, 2 * 16, 2 * 51),
        "features/augmented": (3, 2 * 16, 2 * 51),
        "attention/encoder": (3, 3 * 13, 3 * 13),
        "attention/decoder": (3, 3 * 4, 3 * 13),
    }
    for image in images.values():
        assert 0 <= image.min() < image.max() <= 1
    assert not torch.equal(images["features/plain"], images["features/augmented"])


def test_a_model_without_decoder_has_three_pictures():
    model = tiny.make_model(num_decoder_layers=0)
    task = RecognitionTask(model, loss=LossConfig(ctc_weight=1.0), spec_augment=SpecAugment(SpecAugmentConfig())).eval()
    assert "attention/decoder" not in pictures(task, tiny.noise(4000), tokens=[3])


def test_pictures_leave_the_model_and_random_state_as_they_were(task):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    hooks = [len(module._forward_pre_hooks) for module in task.modules()]
    pictures(task, tiny.noise(4000), tokens=[3, 2, 4])
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(module._forward_pre_hooks) for module in task.modules()] == hooks
    assert not any(module.training for module in task.modules())
    assert all(parameter.grad is None for parameter in task.parameters())
