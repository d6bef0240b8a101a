"""The CTC loss on a GPU: compiled there, and by Triton's interpreter on any machine."""

import math
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for CUDA")

# B utterances, T' frames, U tokens, V vocabulary
SHAPES = [(3, 20, 6, 5), (4, 13, 3, 3), (2, 5, 0, 4), (3, 40, 10, 2), (1, 2, 1, 4)]


def example(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores (B, T', V), lengths, tokens (B, U) with repeats among them, and their lengths; the first row is full."""
    batch, num_frames, num_tokens, vocab_size = shape
    random = torch.Generator().manual_seed(sum(shape))
    token_lengths = torch.randint(0, num_tokens + 1, (batch,), generator=random)
    token_lengths[0] = num_tokens
    # Repeats need a blank between them, so at most twice as many frames as tokens.
    frame_lengths = torch.randint(max(1, 2 * num_tokens), num_frames + 1, (batch,), generator=random)
    tokens = torch.randint(1, vocab_size, (batch, num_tokens), generator=random)
    tokens = tokens * (torch.arange(num_tokens) < token_lengths[:, None])
    return torch.randn(batch, num_frames, vocab_size, generator=random), frame_lengths, tokens, token_lengths


def check_against_pytorch(kernels: ModuleType, shape: tuple[int, int, int, int], device: torch.device) -> None:
    scores, frame_lengths, tokens, token_lengths = example(shape)
    weights = torch.linspace(1.0, 0.5, len(scores))
    exact = scores.double().requires_grad_()
    log_probs = exact.log_softmax(-1).transpose(0, 1)
    expected = F.ctc_loss(log_probs, tokens, frame_lengths, token_lengths, reduction="none")
    (expected * weights).sum().backward()

    own = scores.to(device).requires_grad_()
    rest = (each.to(device) for each in (frame_lengths, tokens, token_lengths))
    found = kernels.CtcLoss.apply(own.log_softmax(-1), *rest)
    (found * weights.to(device)).sum().backward()
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    # Float32 has that many digits less, the more nats the loss has.
    rounding = 1e-5 + 1e-6 * expected.max().item()
    torch.testing.assert_close(own.grad.cpu().double(), exact.grad, rtol=1e-4, atol=rounding)


def check_infinite(kernels: ModuleType) -> None:
    tokens = torch.tensor([[2, 2, 2], [2, 3, 0]])
    log_probs = torch.zeros(2, 4, 4).log_softmax(-1)
    losses = kernels.CtcLoss.apply(log_probs, torch.tensor([4, 4]), tokens, torch.tensor([3, 2]))
    assert torch.isinf(losses).tolist() == [True, False]
    # No frame: only the empty transcript is possible.
    losses = kernels.CtcLoss.apply(log_probs, torch.tensor([0, 0]), tokens, torch.tensor([1, 0]))
    assert losses.tolist() == [math.inf, 0.0]


def test_the_interpreter_gives_what_pytorch_gives():
    # In a process of its own: Triton asks for its interpreter when it is imported.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["compared", str(len(SHAPES))]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [*SHAPES, (32, 700, 330, 32)])
def test_a_gpu_gives_what_a_processor_gives(shape):
    from asr import ctc_kernels

    check_against_pytorch(ctc_kernels, shape, torch.device("cuda"))


if __name__ == "__main__":
    from asr import ctc_kernels

    for each in SHAPES:
        check_against_pytorch(ctc_kernels, each, torch.device("cpu"))
    check_infinite(ctc_kernels)
    print("compared", len(SHAPES))
