"""Sharded training: every process keeps a part of all weights, gradients and moments (FSDP, Zhao et al. 2023).

The parts are rows of the tensors, as PyTorch's `fully_shard` cuts them. Its parameters are `DTensor`s: they act as the
whole tensor, while `own_part` is what lies in this process.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from asr.losses import Loss

SHARDINGS = ("none", "full")


class Sharded(nn.Module):
    """A task of which every process keeps a part; called with a batch, it gives the task's `Loss`.

    A block's weights are whole only while it computes, all others from the forward pass to the end of the backward
    pass. There gradients are summed over the processes, and each keeps those of its part. The task is changed in place;
    names of weights stay as they are.

    Args:
        task: Returns a `Loss`; the same in all processes, on their devices.
        blocks: Its repeated parts, which exchange their weights one by one.
        device_type: Such as `cuda`.
        num_processes: All of them share the task.
    """

    def __init__(self, task: nn.Module, *, blocks: list[nn.Module], device_type: str, num_processes: int) -> None:
        super().__init__()
        self.task = task
        mesh = init_device_mesh(device_type, (num_processes,))
        self._blocks = [fully_shard(block, mesh=mesh) for block in blocks]
        self._parts = [*self._blocks, fully_shard(self, mesh=mesh)]  # the last has what is in no block
        for part in self._parts:
            # PyTorch divides by the number of processes; batches of unequal counts need their sum.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        self.register_forward_hook(lambda _, __, output: Loss(*output))

    def forward(self, batch: Any) -> tuple[Tensor, int, dict[str, Tensor]]:
        """What `Loss` has, in a form in which PyTorch finds the tensor that the backward pass begins with."""
        loss: Loss = self.task(batch)
        return loss.total, loss.count, loss.parts

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Within it, gradients stay whole in their process; the next pass without it sums them all."""
        self._sum_gradients(False)
        try:
            yield
        finally:
            self._sum_gradients(True)

    def _sum_gradients(self, wanted: bool) -> None:
        for part in self._parts:
            part.set_requires_gradient_sync(wanted, recurse=False)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Within it, every process has all weights and computes by itself, as often and in what order it likes."""
        for block in self._blocks:
            block.set_reshard_after_forward(False, recurse=False)
        for part in self._parts:
            part.unshard()
        try:
            yield
        finally:
            for part in self._parts:
                part.reshard()
            for block in self._blocks:
                block.set_reshard_after_forward(True, recurse=False)


def whole_weights(shared: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Within it, every process has all weights of a task, if they are sharded at all."""
    return shared.whole() if isinstance(shared, Sharded) else contextlib.nullcontext()


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, the same memory; of one that is not sharded, the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def collect(tensors: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors, on the processor, in place of those that are sharded; all processes must call it.

    Args:
        tensors: By name, in the same order everywhere.
        keep: Whether this process wants them; if not, they are left out, for want of memory.
    """
    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
            if keep:
                found[name] = tensor.cpu()
        else:
            found[name] = tensor
    return found


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded as another of its shape is; returned as it is where that one is not sharded.

    One of another shape, such as a count of steps, is returned as it is too.
    """
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    part = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()  # it is a view, which would keep the whole in memory


def load_weights_into(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts whole weights into a model that may be sharded."""
    present = model.state_dict()
    model.load_state_dict({name: part_like(weight, present.get(name, weight)) for name, weight in weights.items()})
