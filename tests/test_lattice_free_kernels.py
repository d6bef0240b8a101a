"""The sum over all sequences of phones on a GPU: compiled there, and by Triton's interpreter on any machine."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from asr.lattice_free import PhoneTrigrams, log_partition

pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for CUDA")

# B utterances, T' frames, P phones
SHAPES = [(4, 9, 3), (3, 12, 20), (2, 6, 40)]


def example(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, PhoneTrigrams]:
    """Log-probabilities (B, T', 1 + P), the lengths of the frames, full and none among them, and trigrams."""
    batch, num_frames, num_phones = shape
    random = torch.Generator().manual_seed(sum(shape))
    sentences = torch.randint(1, num_phones + 1, (20, 30), generator=random).tolist()
    log_probs = (torch.randn(batch, num_frames, num_phones + 1, generator=random) * 2).log_softmax(dim=-1)
    lengths = torch.randint(1, num_frames + 1, (batch,), generator=random)
    lengths[0], lengths[-1] = num_frames, 0
    return log_probs, lengths, PhoneTrigrams(sentences, num_phones=num_phones)


def check_against_the_processor(shape: tuple[int, int, int], device: torch.device) -> None:
    from asr.lattice_free_kernels import LogPartition

    log_probs, lengths, trigrams = example(shape)
    weights = torch.linspace(1.0, -0.5, len(lengths))
    exact = log_probs.double().requires_grad_()
    probabilities = trigrams.probabilities.to(device)
    expected = log_partition(exact, lengths, trigrams.double())
    (gradient,) = torch.autograd.grad((expected * weights).sum(), exact)
    own = log_probs.to(device).requires_grad_()
    found = LogPartition.apply(own, lengths.to(device), probabilities)
    (found_gradient,) = torch.autograd.grad((found * weights.to(device)).sum(), own)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_gradient.cpu().double(), gradient, rtol=1e-4, atol=1e-6)


def test_the_interpreter_gives_what_a_processor_gives() -> None:
    # In a process of its own: Triton asks for its interpreter when it is imported.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["compared", str(len(SHAPES))]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [*SHAPES, (40, 400, 55), (3, 20, 63)])
def test_a_gpu_gives_what_a_processor_gives(shape: tuple[int, int, int]) -> None:
    check_against_the_processor(shape, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("num_phones", "kernels"), [(20, True), (70, False)])
def test_many_phones_are_summed_on_a_gpu_too(num_phones: int, kernels: bool) -> None:
    """More than the kernels hold go frame by frame."""
    log_probs, lengths, trigrams = example((4, 12, num_phones))
    expected = log_partition(log_probs, lengths, trigrams)
    found = log_partition(log_probs.cuda().requires_grad_(), lengths.cuda(), trigrams.cuda())
    assert type(found.grad_fn).__name__ == ("LogPartitionBackward" if kernels else "_LogPartitionBackward")
    torch.testing.assert_close(found.detach().cpu(), expected, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    for each in SHAPES:
        check_against_the_processor(each, torch.device("cpu"))
    print("compared", len(SHAPES))
