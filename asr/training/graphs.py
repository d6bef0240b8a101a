"""Loss and gradient of a batch as one CUDA graph: the processor starts thousands of kernels with a single call.

A training step of a small model is bound by the processor, which takes longer to start its kernels than the GPU takes
to run them. A graph is recorded for every shape of batches, so it pays where few shapes come again and again, as with
`loader.padding_step_s`.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from asr.losses import Loss
from asr.training.interfaces import LossInputs, RecordableTask, TrainingBatch

logger = logging.getLogger(__name__)

Shapes = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]

# Every graph takes some memory of its own, and half a second to record; what comes after so many is computed as usual.
_MOST_GRAPHS = 400


class Recorder(Protocol):
    """Records what a function does to tensors."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Returns what does the same work again, on the same memory, and the tensor that then holds its result."""


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory, as no two of them run at once.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Records work without doing it."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as that which moves batches into page-locked memory, go on meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


@dataclass(slots=True)
class _Recording:
    """What replays the work on these tensors, and where its result then is."""

    tensors: dict[str, Tensor]
    replay: Callable[[], None]
    result: Tensor


class RecordedLoss:
    """Loss and gradient of batches, recorded for every shape when it comes for the second time.

    The first time, everything is computed as usual, which also loads and plans the kernels. Random draws go on from
    replay to replay as they would without.

    Args:
        task: Whose loss it is.
        parameters: Whose gradients are computed.
        context: Entered for the loss, such as autocast.
        recorder: Records.
    """

    def __init__(
        self,
        task: RecordableTask,
        *,
        parameters: Iterable[nn.Parameter],
        context: Callable[[], AbstractContextManager[object]],
        recorder: Recorder,
    ) -> None:
        self.task, self.context, self.recorder = task, context, recorder
        self.parameters = [each for each in parameters if each.requires_grad]
        self.seen: set[Shapes] = set()
        self.recordings: dict[Shapes, _Recording] = {}
        self.names: list[str] = []  # of the loss's parts
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}
        self.gradients: dict[nn.Parameter, Tensor] = {}  # where recordings add to

    def __call__(self, batch: TrainingBatch) -> Loss:
        """Adds the gradient of a batch's sum to the gradients of the parameters."""
        self._put_gradients_in_place()
        inputs = self.task.prepare(batch)
        shapes = tuple((name, each.dtype, tuple(each.shape)) for name, each in inputs.tensors.items())
        if shapes in self.recordings:
            values = self._replay(self.recordings[shapes], inputs)
        elif shapes in self.seen and len(self.recordings) < _MOST_GRAPHS:
            self.recordings[shapes] = self._record(inputs)
            values = self._replay(self.recordings[shapes], inputs)
        else:
            self.seen.add(shapes)
            values = self._add_gradient(inputs)
        total, *parts = values.unbind()
        return Loss(total, inputs.count, dict(zip(self.names, parts, strict=True)))

    def _put_gradients_in_place(self) -> None:
        """Gives parameters without a gradient the one that recordings add to, as zeros."""
        dropped = [parameter for parameter in self.gradients if parameter.grad is None]
        if dropped:
            torch._foreach_zero_([self.gradients[parameter] for parameter in dropped])
        for parameter in dropped:
            parameter.grad = self.gradients[parameter]

    def _record(self, inputs: LossInputs) -> _Recording:
        tensors = {name: self._place_for(name, each) for name, each in inputs.tensors.items()}
        replay, result = self.recorder(lambda: self._add_gradient(replace(inputs, tensors=tensors)))
        logger.debug("recorded %d shapes", len(self.recordings) + 1)
        return _Recording(tensors, replay, result)

    def _replay(self, recording: _Recording, inputs: LossInputs) -> Tensor:
        for name, each in inputs.tensors.items():
            recording.tensors[name].copy_(each)
        recording.replay()
        return recording.result.clone()  # the next replay of any recording may write to that memory

    def _place_for(self, name: str, tensor: Tensor) -> Tensor:
        """Memory for such a tensor, which all recordings share; only one that is larger than all before gets new."""
        memory = self.memory.get((name, tensor.dtype))
        if memory is None or memory.numel() < tensor.numel():
            memory = self.memory[name, tensor.dtype] = torch.empty_like(tensor).flatten()
        return memory[: tensor.numel()].view(tensor.shape)

    def _add_gradient(self, inputs: LossInputs) -> Tensor:
        """Adds to the gradients; returns the total and its parts in one tensor."""
        with self.context():
            loss = self.task.compute(inputs)
        found = torch.autograd.grad(loss.total, self.parameters, allow_unused=True)
        sums, added = [], []
        for parameter, grad in zip(self.parameters, found, strict=True):
            if grad is not None:
                if parameter not in self.gradients:
                    parameter.grad = self.gradients[parameter] = torch.zeros_like(parameter)
                sums.append(self.gradients[parameter])
                added.append(grad)
        torch._foreach_add_(sums, added)
        self.names = list(loss.parts)
        return torch.stack([loss.total.detach().float(), *(each.float() for each in loss.parts.values())])
