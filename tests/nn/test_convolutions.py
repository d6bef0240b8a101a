"""The convolutions, channels last, against PyTorch's with the channels first: outputs and gradients."""

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.nn import subsampling
from asr.nn.conformer import ConvModule
from asr.nn.depthwise import DepthwiseConv, HalvingDepthwiseConv
from asr.nn.ebranchformer import GatingMLP, Merge
from asr.nn.masks import halved, valid_mask
from asr.nn.subsampling import ConvSubsampling, HalvingConv

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


def plain_depthwise(conv: DepthwiseConv, x: Tensor) -> Tensor:
    """What `nn.Conv1d` itself makes of frames (B, T, C)."""
    return nn.Conv1d.forward(conv, x.transpose(1, 2)).transpose(1, 2)


def plain_convolution(module: ConvModule, x: Tensor, valid: Tensor) -> Tensor:
    x = F.glu(module.expand(module.norm(x))) * valid
    x = plain_depthwise(module.depthwise, x)
    return module.project(F.silu(module.depthwise_norm(x)))


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kernel_size", [1, 5, 31])
def test_the_convolution_module_equals_one_with_conv1d(kernel_size: int, dtype: torch.dtype, tolerance: float) -> None:
    module = tiny.randomized(ConvModule(WIDTH, kernel_size=kernel_size, dropout=0.1)).to(dtype)
    x, valid = features(width=WIDTH, dtype=dtype), valid_mask(LENGTHS, int(LENGTHS.max()))[:, :, None]
    ours, plain = module(x, valid), plain_convolution(module, x, valid)
    assert_same_outputs_and_gradients(ours, plain, [x, *module.parameters()], tolerance=tolerance)


def plain_gating(module: GatingMLP, x: Tensor, valid: Tensor) -> Tensor:
    x = F.gelu(module.expand(module.norm(x)))
    half = x.shape[-1] // 2
    gate = plain_depthwise(module.gate, module.gate_norm(x[..., half:]) * valid)
    return module.project(x[..., :half] * gate)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kernel_size", [1, 5, 31])
def test_the_gating_mlp_equals_one_with_conv1d(kernel_size: int, dtype: torch.dtype, tolerance: float) -> None:
    module = tiny.randomized(GatingMLP(WIDTH, inner_width=8, kernel_size=kernel_size, dropout=0.1)).to(dtype)
    x, valid = features(width=WIDTH, dtype=dtype), valid_mask(LENGTHS, int(LENGTHS.max()))[:, :, None]
    ours, plain = module(x, valid), plain_gating(module, x, valid)
    assert_same_outputs_and_gradients(ours, plain, [x, *module.parameters()], tolerance=tolerance)


def plain_merge(module: Merge, far: Tensor, near: Tensor, valid: Tensor) -> Tensor:
    """Branch by branch: neither the convolution nor the sum mixes them, and a projection of both is a sum of two."""
    merged = module.project.bias
    for branch, own in enumerate((far, near)):
        channels = slice(branch * WIDTH, (branch + 1) * WIDTH)
        own = own * valid
        kernel, bias = module.depthwise.weight[channels], module.depthwise.bias[channels]
        padding = module.depthwise.kernel_size[0] // 2
        seen = F.conv1d(own.transpose(1, 2), kernel, bias, padding=padding, groups=WIDTH).transpose(1, 2)
        merged = merged + (own + seen) @ module.project.weight[:, channels].T
    return merged


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kernel_size", [1, 5, 31])
def test_the_merge_is_the_sum_of_what_it_makes_of_each_branch(
    kernel_size: int, dtype: torch.dtype, tolerance: float
) -> None:
    module = tiny.randomized(Merge(WIDTH, kernel_size=kernel_size, dropout=0.1)).to(dtype)
    both, valid = features(width=2 * WIDTH, dtype=dtype), valid_mask(LENGTHS, int(LENGTHS.max()))[:, :, None]
    ours, plain = module(*both.chunk(2, dim=-1), valid), plain_merge(module, *both.chunk(2, dim=-1), valid)
    assert_same_outputs_and_gradients(ours, plain, [both, *module.parameters()], tolerance=tolerance)


def plain_halving(conv: nn.Module, planes: Tensor) -> Tensor:
    """What `nn.Conv2d` itself makes of planes (B, C, T, F); the pointwise convolution is one of 1x1 too."""
    if isinstance(conv, HalvingConv):
        return nn.Conv2d.forward(conv, planes)
    planes = nn.Conv2d.forward(conv.depthwise, planes)
    return F.conv2d(planes, conv.pointwise.weight[:, :, None, None], conv.pointwise.bias)


def plain_subsampling(module: ConvSubsampling, x: Tensor, lengths: Tensor) -> Tensor:
    planes = x[:, None]  # (B, 1, T, F)
    for conv in module.convs:
        planes = F.silu(plain_halving(conv, planes * valid_mask(lengths, planes.shape[2])[:, None, :, None]))
        lengths = halved(lengths)
    return module.project(planes.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("channels", [1, 4, WIDE])
@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("kind", ["conv", "separable"])
def test_subsampling_equals_one_with_the_channels_first(
    kind: str, factor: int, channels: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    module = ConvSubsampling(NUM_MELS, WIDTH, factor=factor, channels=channels, kind=kind).to(dtype)
    x = features(width=NUM_MELS, dtype=dtype)
    ours, lengths = module(x, LENGTHS)
    assert lengths.tolist() == module.output_lengths(LENGTHS).tolist()
    plain = plain_subsampling(module, x, LENGTHS)
    assert_same_outputs_and_gradients(ours, plain, [x, *module.parameters()], tolerance=tolerance)


@pytest.mark.parametrize("size", [(5, 4), (7, 1), (1, 6), (8, 3)])  # T, F
def test_the_convolution_of_many_channels_has_the_gradients_of_its_differences(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(subsampling, "_POSITIONS", 5)  # several parts of an utterance
    conv = nn.Conv2d(3, 2, kernel_size=3, stride=2, padding=1).double()
    planes = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    arguments = (planes, conv.weight, conv.bias)
    assert torch.autograd.gradcheck(subsampling._WideConvolution.apply, arguments, check_batched_grad=False)


def test_in_float32_it_has_the_gradients_of_pytorchs() -> None:
    """Where products of matrices may be by another library."""
    torch.manual_seed(0)
    conv = nn.Conv2d(WIDE, 8, kernel_size=3, stride=2, padding=1)
    planes = torch.randn(2, WIDE, 33, 21).contiguous(memory_format=torch.channels_last).requires_grad_()
    ours = subsampling._WideConvolution.apply(planes, conv.weight, conv.bias)
    assert_same_outputs_and_gradients(ours, conv(planes), [planes, *conv.parameters()], tolerance=1e-4)


@pytest.mark.parametrize("channels", [4, WIDE])
@pytest.mark.parametrize("kind", ["conv", "separable"])
def test_subsampling_in_bfloat16_is_close_to_float32(kind: str, channels: int) -> None:
    torch.manual_seed(0)
    module = ConvSubsampling(NUM_MELS, WIDTH, factor=8, channels=channels, kind=kind)
    x = features(width=NUM_MELS, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = module(x, LENGTHS)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), plain_subsampling(module, x, LENGTHS), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("autocast", [True, False])
def test_the_depthwise_convolution_in_bfloat16_has_the_gradients_of_float32(autocast: bool) -> None:
    torch.manual_seed(0)
    conv = HalvingDepthwiseConv(WIDE)
    x = torch.randn(2, 9, 7, WIDE).bfloat16().requires_grad_()
    plain_inputs = [x.detach().float().requires_grad_(), conv.weight, conv.bias]
    plain = nn.Conv2d.forward(conv, plain_inputs[0].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    own = conv if autocast else copy.deepcopy(conv).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = own(x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), plain, atol=2e-2, rtol=2e-2)
    slope = torch.randn(plain.shape).bfloat16()
    inputs = [x, own.weight, own.bias]
    gradients = torch.autograd.grad(ours, inputs, slope)
    assert [each.dtype for each in gradients] == [each.dtype for each in inputs]
    for one, other in zip(gradients, torch.autograd.grad(plain, plain_inputs, slope.float()), strict=True):
        torch.testing.assert_close(one.float(), other, atol=1e-2 * float(other.abs().max()), rtol=1e-2)


def test_separable_subsampling_has_fewer_weights_of_other_names() -> None:
    kinds = {kind: ConvSubsampling(NUM_MELS, WIDTH, factor=4, channels=8, kind=kind) for kind in ("conv", "separable")}
    shapes = {kind: {name: tuple(w.shape) for name, w in module.state_dict().items()} for kind, module in kinds.items()}
    assert shapes["conv"].pop("convs.1.weight") == (8, 8, 3, 3)
    assert shapes["conv"].pop("convs.1.bias") == (8,)
    assert shapes["separable"].pop("convs.1.depthwise.weight") == (8, 1, 3, 3)
    assert shapes["separable"].pop("convs.1.depthwise.bias") == (8,)
    assert shapes["separable"].pop("convs.1.pointwise.weight") == (8, 8)
    assert shapes["separable"].pop("convs.1.pointwise.bias") == (8,)
    assert shapes["conv"] == shapes["separable"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_gives_what_a_processor_gives(compiled: bool) -> None:
    torch.manual_seed(0)
    conv, x = DepthwiseConv(6, kernel_size=5).double(), torch.randn(2, 9, 6, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        conv.to(device).zero_grad()
        own = x.detach().clone().to(device).requires_grad_()
        run = torch.compile(conv, backend="aot_eager") if compiled and device == "cuda" else conv
        y = run(own)
        y.square().sum().backward()
        found.append([each.detach().cpu() for each in (y, own.grad, conv.weight.grad, conv.bias.grad)])
    torch.testing.assert_close(found[1], found[0])
