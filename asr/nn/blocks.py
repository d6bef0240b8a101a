"""Running the repeated blocks of a model."""

from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def runner(block: nn.Module, *, recompute: bool) -> Callable[..., Tensor]:
    """What to call to run a block, with the block's own arguments.

    Args:
        block: The block.
        recompute: Whether, in training, to keep only the block's inputs and to compute the rest again in the backward
            pass (Chen et al. 2016): less memory for a third more work. Dropout drops the same again.
    """
    if recompute and block.training:
        return cast(Callable[..., Tensor], partial(checkpoint, block, use_reentrant=False))
    return block
