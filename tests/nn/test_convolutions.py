"""The convolutions, channels last, against PyTorch's with the channels first: outputs and gradients."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.nn import subsampling
from asr.nn.conformer import ConvModule
from asr.nn.masks import halved, valid_mask
from asr.nn.subsampling import ConvSubsampling

LENGTHS = torch.tensor([21, 8, 1])
NUM_MELS, WIDTH = 10, 6
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]
WIDE = subsampling._WIDE


def features(*, width: int, dtype: torch.dtype) -> Tensor:
    shape = len(LENGTHS), int(LENGTHS.max()), width
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype).requires_grad_()


def assert_same_outputs_and_gradients(ours: Tensor, plain: Tensor, inputs: list[Tensor], *, tolerance: float) -> None:
    """Gradients are compared along one random direction of the output; the tolerance is a share of the largest."""
    torch.testing.assert_close(ours, plain, atol=tolerance, rtol=tolerance)
    slope = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(plain.dtype)
    gradients = zip(torch.autograd.grad(ours, inputs, slope), torch.autograd.grad(plain, inputs, slope), strict=True)
    for own, expected in gradients:
        torch.testing.assert_close(own, expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


def plain_convolution(module: ConvModule, x: Tensor, valid: Tensor) -> Tensor:
    x = F.glu(module.expand(module.norm(x))) * valid
    x = module.depthwise(x.transpose(1, 2)).transpose(1, 2)
    return module.project(F.silu(module.depthwise_norm(x)))


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kernel_size", [1, 5, 31])
def test_the_convolution_module_equals_one_with_conv1d(kernel_size: int, dtype: torch.dtype, tolerance: float) -> None:
    module = tiny.randomized(ConvModule(WIDTH, kernel_size=kernel_size, dropout=0.1)).to(dtype)
    x, valid = features(width=WIDTH, dtype=dtype), valid_mask(LENGTHS, int(LENGTHS.max()))[:, :, None]
    ours, plain = module(x, valid), plain_convolution(module, x, valid)
    assert_same_outputs_and_gradients(ours, plain, [x, *module.parameters()], tolerance=tolerance)


def plain_subsampling(module: ConvSubsampling, x: Tensor, lengths: Tensor) -> Tensor:
    planes = x[:, None]  # (B, 1, T, F)
    for conv in module.convs:
        planes = F.silu(conv(planes * valid_mask(lengths, planes.shape[2])[:, None, :, None]))
        lengths = halved(lengths)
    return module.project(planes.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("channels", [1, 4, WIDE])
@pytest.mark.parametrize("factor", [4, 8])
def test_subsampling_equals_one_with_the_channels_first(
    factor: int, channels: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    module = ConvSubsampling(NUM_MELS, WIDTH, factor=factor, channels=channels).to(dtype)
    x = features(width=NUM_MELS, dtype=dtype)
    ours, lengths = module(x, LENGTHS)
    assert lengths.tolist() == module.output_lengths(LENGTHS).tolist()
    plain = plain_subsampling(module, x, LENGTHS)
    assert_same_outputs_and_gradients(ours, plain, [x, *module.parameters()], tolerance=tolerance)


def test_the_convolution_of_many_channels_has_the_gradients_of_its_differences() -> None:
    conv = nn.Conv2d(3, 2, kernel_size=3, stride=2, padding=1).double()
    planes = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(subsampling._WideConvolution.apply, (planes, conv.weight, conv.bias))


@pytest.mark.parametrize("channels", [4, WIDE])
def test_subsampling_in_bfloat16_is_close_to_float32(channels: int) -> None:
    torch.manual_seed(0)
    module = ConvSubsampling(NUM_MELS, WIDTH, factor=8, channels=channels)
    x = features(width=NUM_MELS, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = module(x, LENGTHS)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), plain_subsampling(module, x, LENGTHS), atol=1e-2, rtol=1e-2)
