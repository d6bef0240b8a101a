"""Benchmark of a training step: counted operations, peers of the same shapes, and the recipe from end to end."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import benchmark
import pytest
import tiny
import torch
from benchmarks import train_step
from benchmarks.encoder_peers import ENCODER_PEERS
from benchmarks.flops import encoder_flops
from benchmarks.harness import Contender, Result, Skipped
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed

from asr.nn.conformer import ConformerEncoder

PACKAGES = {"torchaudio": "torchaudio", "espnet": "espnet2", "speechbrain": "speechbrain", "parakeet": "transformers"}


def flops(**changes: int) -> int:
    config = replace(tiny.make_encoder_config(), **changes)
    return encoder_flops(config, num_mels=tiny.NUM_MELS, num_frames=100)


def test_operations_are_two_for_a_multiplication_forward_and_twice_as_many_backward():
    width, num_frames, num_layers = tiny.WIDTH, 25, 2
    # Two feed-forward modules of two matrices each.
    added = num_layers * 4 * num_frames * width * 32 * 2 * 3
    assert flops(feedforward_width=64) - flops(feedforward_width=32) == added
    # Two more taps of a convolution in which each channel sees itself alone.
    assert flops(kernel_size=7) - flops(kernel_size=5) == num_layers * num_frames * width * 2 * 2 * 3


def test_operations_of_the_subsampling_are_those_of_two_convolutions_and_a_projection():
    # 50 x 8 and 25 x 4 outputs of 9 taps; the first has one channel to see and passes no gradient on.
    first, second, project = 50 * 8 * 9 * 2, 25 * 4 * 9 * 2, 25 * 4 * tiny.WIDTH * 2
    expected = {channels: 2 * first * channels + 3 * (second * channels**2 + project * channels) for channels in (4, 8)}
    assert flops(subsampling_channels=8) - flops(subsampling_channels=4) == expected[8] - expected[4]


@pytest.mark.parametrize("peer", ENCODER_PEERS)
def test_peers_have_the_frames_of_this_project_and_learn(peer):
    pytest.importorskip(PACKAGES[peer], reason=f"{peer} is not on PYTHONPATH")
    config = tiny.make_encoder_config()
    other = ENCODER_PEERS[peer](config, num_mels=tiny.NUM_MELS)
    features, lengths = torch.randn(2, 64, tiny.NUM_MELS), torch.tensor([64, 64])
    frames = other.encoder(features, lengths)
    assert (frames.shape[0], frames.shape[2]) == (2, tiny.WIDTH)
    assert 15 <= frames.shape[1] <= 16  # ESPnet's subsampling has no padding
    frames.square().sum().backward()
    assert all(weight.grad is not None for name, weight in other.encoder.named_parameters() if weight.requires_grad)


@pytest.mark.parametrize("peer", [peer for peer in ENCODER_PEERS if peer != "torchaudio"])
def test_peers_that_are_not_installed_say_how_to_get_them(peer, monkeypatch):
    for name in {PACKAGES[peer], *(name for name in sys.modules if name.split(".")[0] == PACKAGES[peer])}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Skipped, match=rf"(?i)^{peer}: .*; pip install --no-deps --target PEERS .*PYTHONPATH=PEERS"):
        ENCODER_PEERS[peer](tiny.make_encoder_config(), num_mels=tiny.NUM_MELS)


def test_a_step_is_forward_and_backward_in_training_mode():
    encoder = ConformerEncoder(tiny.make_encoder_config(dropout=0.0), num_mels=tiny.NUM_MELS).eval()
    compute = train_step._computation(encoder, dtype="float32", device=torch.device("cpu"), width=tiny.WIDTH)
    step = train_step._step(encoder, compute)
    batch = torch.randn(2, 40, tiny.NUM_MELS), torch.tensor([40, 40])
    assert encoder.training
    first = step(batch)
    gradients = [weight.grad.clone() for weight in encoder.parameters() if weight.grad is not None]
    assert len(gradients) == len(list(encoder.parameters()))
    assert step(batch) == first  # no gradient is left from the step before, and nothing was learned
    assert all(torch.equal(*pair) for pair in zip(gradients, (w.grad for w in encoder.parameters()), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recorded_step_has_the_loss_and_gradient_of_a_step():
    encoder = ConformerEncoder(tiny.make_encoder_config(dropout=0.0), num_mels=tiny.NUM_MELS)
    compute = train_step._computation(encoder, dtype="float32", device=torch.device("cuda"), width=tiny.WIDTH)
    batch = torch.randn(2, 40, tiny.NUM_MELS, device="cuda"), torch.tensor([40, 40], device="cuda")
    expected = train_step._step(encoder, compute)(batch)
    gradients = [weight.grad.clone() for weight in encoder.parameters()]
    recorded = train_step._recorded(encoder, lambda: compute(batch))
    for _ in range(2):
        assert recorded(batch) == pytest.approx(expected, rel=1e-5)
        for weight, gradient in zip(encoder.parameters(), gradients, strict=True):
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_without_a_compiler_the_compiled_encoder_does_not_take_part():
    def compute() -> Tensor:
        raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler"), [])

    encoder = ConformerEncoder(tiny.make_encoder_config(), num_mels=tiny.NUM_MELS)
    with pytest.raises(Skipped, match=r"^asr, compiled: .*no C\+\+ compiler.*; install a C\+\+ compiler, or set bench"):
        train_step._compile(encoder, compute, name="asr, compiled")


def test_the_share_of_the_devices_arithmetic_is_that_of_work_in_the_same_time():
    step = Result(Contender("asr", "1", print), [4.0, 2.0], [4.0, 4.0], [0.0])
    product = Result(Contender("product", "1", print), [1.0, 1.0], [1.0, 1.0], [None])
    found = train_step._utilization(step, product, step_flops=200, product_flops=100, on_processor=True)
    assert (found["shares"], found["share"], found["cpu_share"]) == ([0.5, 1.0], 0.75, 0.5)
    assert found["ceiling"] == 100
    assert found["flops_per_s"] == pytest.approx(200 / 3)


def test_the_recipe_reports_times_and_the_share_of_the_devices_arithmetic(
    compose: Callable[..., Any], tmp_path, capsys
):
    sizes = {"num_layers": 1, "width": 16, "num_heads": 2, "feedforward_width": 32, "subsampling_channels": 4}
    settings = [f"benchmark.encoder.{name}={value}" for name, value in sizes.items()]
    settings += ["benchmark.batch_size=2", "benchmark.duration_s=0.5", "benchmark.num_mels=16", "benchmark.num_steps=2"]
    settings += ["benchmark.peers=[torchaudio]", "benchmark.compiled=false", "benchmark.matmul_size=64"]
    where = [f"output={tmp_path}", "device=cpu", "num_threads=0"]
    benchmark.run(compose("benchmark", "benchmark=train_step", *where, *settings))
    found = json.loads((tmp_path / "train_step.json").read_text(encoding="utf-8"))
    own = [f"asr, {kind} subsampling, {dtype}" for kind in ("conv", "separable") for dtype in ("float32", "bfloat16")]
    names = [*own, "torchaudio, float32", "torchaudio, bfloat16"]
    assert [each["name"] for each in found["contenders"]] == names
    assert all(len(each["seconds"]) == 3 for each in found["contenders"])
    assert [each["name"] for each in found["utilization"]] == own
    assert [each["dtype"] for each in found["ceilings"]] == ["float32", "bfloat16"]
    assert found["shapes"] == {"features": [2, 50, 16], "matrix": [64, 64]}
    steps = found["step_flops"]
    assert steps["conv"] > steps["separable"] > 100_000
    assert [each["step_flops"] for each in found["utilization"]] == [steps["conv"]] * 2 + [steps["separable"]] * 2
    assert found["skipped"] == []
    printed = capsys.readouterr().out
    assert printed.startswith("train_step: 2 x forward and backward of 2 x 0.5 s, 3 repeats; ")
    assert "torchaudio, float32: this project's subsampling in front; attention without relative positions" in printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=0", "benchmark.batch_size is 0; it must be at least 1"),
        ("duration_s=0", "benchmark.duration_s is 0; it must be at least 0.1"),
        ("encoder.subsampling=8", "benchmark.encoder.subsampling is 8; the peers can only take 4"),
        (
            "encoder.subsampling_kind=separable",
            "benchmark.encoder.subsampling_kind is separable; name it in benchmark.subsampling_kinds",
        ),
        ("subsampling_kinds=[]", r"benchmark.subsampling_kinds has \[\]; choose from conv, separable"),
        ("dtypes=[float64]", r"benchmark.dtypes has \['float64'\]; choose from float32, bfloat16, float16"),
        ("peers=[kaldi]", r"benchmark.peers has \['kaldi'\]; choose from torchaudio, espnet, speechbrain, parakeet"),
    ],
)
def test_settings_out_of_range_are_named(compose: Callable[..., Any], override, message):
    with pytest.raises(ValueError, match=message):
        compose("benchmark", "benchmark=train_step", f"benchmark.{override}")
