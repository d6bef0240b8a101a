"""AdamW, learning-rate schedules, and the moving average of the weights."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asr.training.sharding import own_part, part_like

SCHEDULES = ("cosine", "inverse_sqrt", "constant")


@dataclass(slots=True, kw_only=True)
class OptimConfig:
    """The optimiser and its learning rate.

    Attributes:
        lr: Peak learning rate.
        warmup_steps: Steps in which it rises linearly from zero to the peak.
        schedule: After that: `cosine` falls to `final_lr_share` at the last step (Loshchilov & Hutter 2017),
            `inverse_sqrt` falls with the root of the step (Vaswani et al. 2017), `constant` stays.
        final_lr_share: What remains of the peak at the end of `cosine`, in [0, 1].
        weight_decay: Decay of matrices and kernels; biases, gains and other vectors have none.
        beta1: Decay of the gradient's mean, in [0, 1).
        beta2: Decay of the gradient's square, in [0, 1).
        max_grad_norm: Gradients with a larger norm are scaled down to it; 0 leaves them.
    """

    lr: float = 1e-3
    warmup_steps: int = 1000
    schedule: str = "cosine"
    final_lr_share: float = 0.01
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    max_grad_norm: float = 5.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optim.schedule is {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if self.lr <= 0:
            raise ValueError(f"optim.lr is {self.lr}; it must be above 0")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.final_lr_share <= 1:
            raise ValueError(f"optim.final_lr_share is {self.final_lr_share}; it must be in [0, 1]")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be in [0, 1)")


def learning_rate(config: OptimConfig, step: int, *, max_steps: int) -> float:
    """The learning rate of a step, counted from 1: a function of its number, so there is no state to keep."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "inverse_sqrt":
        return config.lr * math.sqrt(max(1, config.warmup_steps) / step)
    progress = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    share = config.final_lr_share
    return config.lr * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with weight decay on matrices and kernels alone."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and not name.endswith("bias") else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state under the names of the parameters."""
    return {
        f"optimizer/{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave."""
    for name, parameter in model.named_parameters():
        prefix = f"optimizer/{name}/"
        # AdamW counts its steps in a tensor that stays on the processor unless the kernel is fused there.
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if own:
            optimizer.state[parameter] = {
                key: part_like(value, parameter).to(parameter.device) for key, value in own.items()
            }


class MovingAverage:
    """Exponential moving average of the weights (Polyak & Juditsky 1992), which decays less in the first steps.

    Args:
        model: Whose parameters are averaged.
        decay: Share of the average that stays in every step, in [0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        # On the device, as only the device knows at once whether a step was good.
        device = next(iter(self.weights.values())).device
        self.num_updates = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, model: nn.Module, *, good: Tensor | None = None) -> None:
        """Takes the model's present weights in, if `good`, a boolean scalar on their device; by default it is true."""
        taken = 1.0 if good is None else good.double()
        self.num_updates += taken
        decay = ((1 + self.num_updates) / (10 + self.num_updates)).clamp(max=self.decay)
        present = [own_part(parameter.detach()) for parameter in model.parameters()]
        averages = [own_part(average) for average in self.weights.values()]
        share = ((1 - decay) * taken).to(present[0].dtype)
        # Not as torch._foreach_lerp_, which takes a share that the processor does not know one weight after the other.
        steps = torch._foreach_sub(present, averages)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(averages, steps)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the average and the model's weights; a second call puts both back."""
        for name, parameter in model.named_parameters():
            present = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(present)
