"""The feed-forward module of all blocks."""

from torch import Tensor, nn

from asr.nn.dropout import Dropout
from asr.nn.linear import Linear


class FeedForward(nn.Sequential):
    """Layer norm, expansion, SiLU, projection (Gulati et al. 2020, section 2.1.3).

    Args:
        width: Width D of the frames.
        inner_width: Width between expansion and projection.
        dropout: Probability of dropping an activation in training, in [0, 1).
    """

    def __init__(self, width: int, *, inner_width: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            Linear(width, inner_width),
            nn.SiLU(),
            Dropout(dropout),
            Linear(inner_width, width),
            Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, D) to (…, D)."""
        norm, expand, activation, inner_dropout, project, dropout = self
        hidden = expand(norm(x))
        found: Tensor = dropout(project(inner_dropout(activation(hidden), marker=hidden)))
        return found
