"""Ways to compute the same in less time or less memory, as far as a model's own parts allow."""

import os
import shutil
import sys
from typing import Protocol, runtime_checkable

from torch import nn

# The compiler can sum gradients of a norm's weights in the kernel of its input's gradient, but only for batches above a
# certain size: it would compile anew where batches pass it. In the end, that takes as long as two kernels.
_OPTIONS = {"triton.mix_order_reduction": False}


@runtime_checkable
class HasBlocks(Protocol):
    """A model that names its repeated parts, where compiling and sharding one by one pay."""

    def blocks_to_compile(self) -> list[nn.Module]:
        """The parts to compile, one by one."""


@runtime_checkable
class CanCheckpoint(Protocol):
    """A module that can compute its activations anew in the backward pass instead of keeping them."""

    checkpoint_activations: bool


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model; none where it does not name them."""
    return model.blocks_to_compile() if isinstance(model, HasBlocks) else []


def compile_blocks(model: nn.Module) -> None:
    """Compiles the blocks of a model in place, for batches of any size; names of weights stay as they are.

    Raises:
        ValueError: If the model has no blocks to compile, or there is no compiler.
    """
    if not isinstance(model, HasBlocks):
        raise ValueError(f"trainer.compile is true, but {type(model).__name__} has no blocks to compile; set it false")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"trainer.compile is true, but the C++ compiler {compiler} is not found; install it, name another by the "
            "environment's CXX, or set trainer.compile=false"
        )
    for block in model.blocks_to_compile():
        compile_block(block)


def compile_block(block: nn.Module) -> None:
    """Compiles a block in place, for batches of any size."""
    block.compile(dynamic=True, options=dict(_OPTIONS))


def checkpoint_activations(model: nn.Module) -> None:
    """Lets every part of a model that can keep its activations only from block to block (Chen et al. 2016).

    Raises:
        ValueError: If no part can.
    """
    able = [module for module in model.modules() if isinstance(module, CanCheckpoint)]
    if not able:
        raise ValueError(
            f"trainer.activation_checkpointing is true, but {type(model).__name__} has no part that can do it; "
            "set it false"
        )
    for module in able:
        module.checkpoint_activations = True
