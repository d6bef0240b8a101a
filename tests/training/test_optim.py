"""Schedules, weight decay, the optimiser's state, and the moving average of the weights."""

import math

import pytest
import tiny
import torch
from torch import nn

from asr.training.optim import (
    MovingAverage,
    OptimConfig,
    build_optimizer,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
)


def rates(config: OptimConfig, *steps: int, max_steps: int = 1000) -> list[float]:
    return [learning_rate(config, step, max_steps=max_steps) for step in steps]


# Schedules


@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt", "constant"])
def test_warm_up_rises_in_a_line_to_the_peak(schedule):
    config = OptimConfig(lr=0.5, warmup_steps=100, schedule=schedule)
    assert rates(config, 1, 50, 100) == pytest.approx([0.005, 0.25, 0.5])
    assert learning_rate(config, 101, max_steps=1000) <= 0.5


def test_cosine_is_halfway_in_the_middle_and_ends_at_its_share():
    config = OptimConfig(lr=0.5, warmup_steps=100, schedule="cosine", final_lr_share=0.1)
    assert rates(config, 550, 1000) == pytest.approx([0.5 * 0.55, 0.05])
    assert rates(config, 1001, 5000) == pytest.approx([0.05, 0.05])  # the last step was lowered after the fact


def test_cosine_never_rises_after_the_warm_up():
    config = OptimConfig(warmup_steps=10)
    falling = rates(config, *range(10, 1001))
    assert falling == sorted(falling, reverse=True)


def test_inverse_square_root_halves_in_four_times_the_steps():
    config = OptimConfig(lr=0.5, warmup_steps=100, schedule="inverse_sqrt")
    assert rates(config, 400, 900, max_steps=7) == pytest.approx([0.25, 0.5 / 3])


def test_constant_stays():
    assert rates(OptimConfig(lr=0.5, warmup_steps=10, schedule="constant"), 11, 500, 1000) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt", "constant"])
def test_without_warm_up_the_first_step_is_near_the_peak(schedule):
    config = OptimConfig(lr=0.5, warmup_steps=0, schedule=schedule)
    assert learning_rate(config, 1, max_steps=1000) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("max_steps", [1, 100])
def test_a_warm_up_as_long_as_the_training_is_allowed(max_steps):
    config = OptimConfig(lr=0.5, warmup_steps=100)
    assert learning_rate(config, max_steps, max_steps=max_steps) == pytest.approx(0.5 * max_steps / 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, r"optim\.schedule is 'linear'; choose one of cosine, inverse_sqrt, constant"),
        ({"lr": 0.0}, r"optim\.lr is 0\.0; it must be above 0"),
        ({"warmup_steps": -1}, r"optim\.warmup_steps is -1; it must not be negative"),
        ({"weight_decay": -0.1}, r"optim\.weight_decay is -0\.1; it must not be negative"),
        ({"max_grad_norm": -1.0}, r"optim\.max_grad_norm is -1\.0; it must not be negative"),
        ({"final_lr_share": 1.1}, r"optim\.final_lr_share is 1\.1; it must be in \[0, 1\]"),
        ({"beta1": 1.0}, r"optim\.beta1 is 1\.0; it must be in \[0, 1\)"),
        ({"beta2": -0.1}, r"optim\.beta2 is -0\.1; it must be in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**changes)


# The optimiser


def test_matrices_and_kernels_decay_and_vectors_do_not():
    model = tiny.make_model()
    optimizer = build_optimizer(OptimConfig(weight_decay=0.3, beta1=0.8, beta2=0.9), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    decays = {name: decay.pop(id(parameter)) for name, parameter in model.named_parameters()}
    assert not decay
    for name, parameter in model.named_parameters():
        assert decays[name] == (0.3 if parameter.ndim >= 2 and not name.endswith("bias") else 0.0), name
    assert decays["encoder.blocks.0.conv.depthwise.weight"] == 0.3
    assert decays["encoder.blocks.0.attention.content_bias"] == 0.0  # a bias, though it has more than one dimension
    assert decays["encoder.blocks.0.norm.weight"] == decays["ctc.bias"] == 0.0
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_frozen_parameters_are_not_trained():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    groups = build_optimizer(OptimConfig(), model).param_groups
    assert [len(group["params"]) for group in groups] == [0, 1]


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, *, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_an_optimiser_that_was_stored_goes_on_as_if_it_had_not_been():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(OptimConfig(), model)
    take_steps(model, optimizer, seeds=range(3))
    stored = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    assert set(stored) == {
        f"optimizer/{name}/{part}"
        for name in ("0.weight", "0.bias", "1.weight", "1.bias")
        for part in ("step", "exp_avg", "exp_avg_sq")
    }

    other = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    other.load_state_dict(model.state_dict())
    resumed = build_optimizer(OptimConfig(), other)
    restore_optimizer(resumed, other, stored)
    take_steps(model, optimizer, seeds=range(3, 6))
    take_steps(other, resumed, seeds=range(3, 6))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name))
    for name, tensor in optimizer_tensors(optimizer, model).items():
        assert torch.equal(tensor, optimizer_tensors(resumed, other)[name])


def test_parameters_whose_names_begin_alike_are_kept_apart():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2)})
    optimizer = build_optimizer(OptimConfig(), model)
    take_steps(model, optimizer, seeds=range(2))
    stored = optimizer_tensors(optimizer, model)
    resumed = build_optimizer(OptimConfig(), model)
    restore_optimizer(resumed, model, stored)
    for name, tensor in optimizer_tensors(resumed, model).items():
        assert torch.equal(tensor, stored[name])


# The moving average


def test_the_average_agrees_with_a_plain_loop():
    model = nn.Linear(3, 2)
    average = MovingAverage(model, decay=0.9)
    expected = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    for number in range(1, 150):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape))
        average.update(model)
        decay = min(0.9, (1 + number) / (10 + number))
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
    assert average.num_updates == 149
    for name, weight in average.weights.items():
        torch.testing.assert_close(weight.double(), expected[name], atol=1e-5, rtol=1e-5)


def test_the_average_follows_quickly_at_first():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = MovingAverage(model, decay=0.999)
    model.weight.data.fill_(1.0)
    average.update(model)
    assert float(average.weights["weight"]) == pytest.approx(9 / 11)


def test_swapping_exchanges_and_swapping_twice_changes_nothing():
    model = nn.Linear(3, 2)
    average = MovingAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.mul_(math.pi)
    average.update(model)
    present = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    averaged = {name: weight.clone() for name, weight in average.weights.items()}

    average.swap(model)
    assert all(torch.equal(parameter, averaged[name]) for name, parameter in model.named_parameters())
    assert all(torch.equal(weight, present[name]) for name, weight in average.weights.items())
    average.swap(model)
    assert all(torch.equal(parameter, present[name]) for name, parameter in model.named_parameters())
    assert all(torch.equal(weight, averaged[name]) for name, weight in average.weights.items())
