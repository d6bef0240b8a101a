"""Several processes that train one model, on one machine or many, as `torchrun` starts them.

In every step, each process has a batch of its own, and either the whole model or, sharded, a part of it. Gradients are
summed, not averaged, and divided by the count of all processes: a step is that of one process on all the batches.
"""

import contextlib
import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from asr.data.dataset import stable_seed
from asr.devices import pick_device
from asr.training.sharding import Sharded

T = TypeVar("T")

# Others wait here while the first process prepares a corpus or evaluates; torchrun ends them where it fails.
_PATIENCE = timedelta(hours=24)
# What threads have for freeing the last sums, which takes them microseconds (see `leave`).
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Team:
    """The processes that train one model together; by default there is this one alone.

    What passes between them as numbers and objects goes from processor to processor, so no GPU is waited for. Every
    process must call the same methods in the same order.

    Attributes:
        rank: The number of this process, from 0.
        size: Number of processes.
        local_size: Number of those on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the first process: the one that writes, prints and evaluates."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """The sums over all processes, in double precision."""
        if self.size == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return cast(list[float], sums.tolist())

    def max(self, value: int) -> int:
        """The largest of all processes."""
        if self.size == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all; the others wait for it."""
        if self.size == 1:
            return make()
        values = [make() if self.leads else None]
        dist.broadcast_object_list(values, src=0)
        return cast(T, values[0])

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self.sum([0])

    def sum_on_device(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, where the tensor is, without waiting for it."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def draw_apart(self, seed: int) -> None:
        """Lets every process but the first draw numbers of its own from here on, such as those of dropout."""
        if not self.leads:
            torch.manual_seed(stable_seed(seed, "process", self.rank))

    def share(
        self, task: nn.Module, *, sharding: str = "none", blocks: Sequence[nn.Module] = (), device_type: str = "cpu"
    ) -> nn.Module:
        """Makes a module's backward pass sum gradients over all processes, while it still computes.

        Args:
            task: Returns a `Loss`.
            sharding: `none` leaves each process the whole module; `full` leaves it a part (see `Sharded`).
            blocks: Its repeated parts, for `full`.
            device_type: Where the module is, such as `cuda`, for `full`.

        Raises:
            ValueError: If it shall be sharded, but this process is alone.
        """
        if sharding == "full" and self.size == 1:
            raise ValueError(
                "trainer.sharding is full, but there is one process, which keeps all; start several with torchrun "
                "--nproc-per-node, or set it to none"
            )
        if sharding == "full":
            return Sharded(task, blocks=list(blocks), device_type=device_type, num_processes=self.size)
        if self.size == 1:
            return task
        shared = DistributedDataParallel(task, broadcast_buffers=False, gradient_as_bucket_view=True)
        shared.register_comm_hook(None, _summed)
        return shared


def _summed(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """PyTorch's own hook divides by the number of processes; batches of unequal counts need their sum."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def held_back(shared: nn.Module, hold: bool) -> contextlib.AbstractContextManager[None]:
    """Within it, gradients of `Team.share` stay in their process if `hold`; the next pass without sums them all."""
    if hold and isinstance(shared, DistributedDataParallel):
        return cast(contextlib.AbstractContextManager[None], shared.no_sync())
    if hold and isinstance(shared, Sharded):
        return shared.held_back()
    return contextlib.nullcontext()


def own_rank() -> int:
    """The number of this process among those that torchrun started, from 0; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def join(device: str, *, num_threads: int) -> tuple[Team, torch.device]:
    """Joins the other processes that torchrun started, and finds the device of this one.

    Args:
        device: `auto`, `cpu` or `cuda`; with one process also `cuda:N`.
        num_threads: Processor threads of this process; 0 leaves the number as it is.

    Raises:
        ValueError: If there is no such device, or not one for every process.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team(), pick_device(device, num_threads=num_threads)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own = pick_device(_own_device(device, local_size), num_threads=num_threads)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=_PATIENCE)
    return Team(own_rank(), size, local_size), own


def _own_device(name: str, local_size: int) -> str:
    """Each process of a machine takes the GPU of its number there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {name!r}, but each of several processes needs its own; choose auto, cuda or cpu")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if torch.cuda.device_count() < local_size:
        raise ValueError(
            f"device is {name!r}, but {local_size} processes share {torch.cuda.device_count()} CUDA devices; "
            "start as many with torchrun --nproc-per-node, or use device=cpu"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


def leave() -> None:
    """Parts from the other processes, if there are any; the last thing that a process does with them.

    Threads of Gloo free what they have summed a moment after it is there for all, and need the interpreter for that:
    one that comes when the interpreter is ending aborts the process. They end with their group, which shared modules
    hold, so those that nobody uses any more are freed; where one is still in use, the pause lets the threads finish.
    """
    if not dist.is_initialized():
        return
    gc.collect()
    dist.destroy_process_group()
    time.sleep(_PAUSE_S)
