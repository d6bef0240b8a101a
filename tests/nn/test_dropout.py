"""Dropout: how much it drops, that the mean stays, and that a seed repeats it."""

import pytest
import torch

from asr.nn.dropout import Dropout, byte_dropout, hashed_dropout

MANY = 200_000


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5, 0.9])
def test_the_asked_share_is_dropped_and_the_mean_stays(probability: float) -> None:
    torch.manual_seed(0)
    dropped = Dropout(probability)(torch.ones(MANY))
    share = float((dropped == 0).double().mean())
    # A step of the probability is 1/256; five standard deviations of the draw come on top.
    spread = (probability * (1 - probability) / MANY) ** 0.5
    assert abs(share - probability) < 1 / 512 + 5 * spread
    assert float(dropped.double().mean()) == pytest.approx(1, abs=5 * spread / (1 - probability))


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.999])
def test_kept_values_are_scaled_by_the_share_that_is_kept(probability: float) -> None:
    torch.manual_seed(0)
    values = Dropout(probability)(torch.ones(MANY)).unique().tolist()
    in_use = min(round(probability * 256), 255) / 256
    assert values == pytest.approx([0, 1 / (1 - in_use)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("probability", [1 / 256, 0.1, 0.5, 0.9])
def test_every_value_of_a_byte_is_kept_or_dropped_as_it_should(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(MANY).to(dtype)
    dropped = byte_dropout(x, probability)
    kept = 1 - round(probability * 256) / 256
    assert float((dropped == 0).double().mean()) == pytest.approx(1 - kept, abs=5e-3)
    torch.testing.assert_close(dropped[dropped != 0], (x[dropped != 0].double() / kept).to(dtype))


def test_a_probability_below_the_resolution_drops_nothing() -> None:
    x = torch.randn(10)
    assert byte_dropout(x, 0.0019) is x


@pytest.mark.parametrize("probability", [0.0, 0.001, 0.1, 0.5, 0.9])
def test_mixed_draws_drop_the_asked_share_and_scale_the_rest(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 50, 300, requires_grad=True)
    dropped = hashed_dropout(x, probability)
    kept = dropped != 0
    spread = (probability * (1 - probability) / x.numel()) ** 0.5
    # Rows and columns have draws in common, which makes the share spread a little more than that of single draws.
    assert float((~kept).double().mean()) == pytest.approx(probability, abs=8 * spread)
    torch.testing.assert_close(dropped[kept], x[kept] / (1 - probability))
    (slope,) = torch.autograd.grad(dropped.sum(), x)
    torch.testing.assert_close(slope, kept / (1 - probability))


def test_mixed_draws_have_nothing_to_do_with_each_other() -> None:
    torch.manual_seed(0)
    kept = hashed_dropout(torch.ones(600, 400), 0.3) != 0
    spread = (0.3 * 0.7) ** 0.5
    for places in (kept.double(), kept.t().double()):
        counts = places.mean(dim=1)
        assert float(counts.std()) == pytest.approx(spread / places.shape[1] ** 0.5, rel=0.15), "as of single draws"
        shared = torch.corrcoef(places)
        shared.fill_diagonal_(0)
        assert float(shared.std()) == pytest.approx(places.shape[1] ** -0.5, rel=0.05)
        assert float(shared.abs().max()) < 6 * places.shape[1] ** -0.5
    again = hashed_dropout(torch.ones(600, 400), 0.3) != 0
    assert float((kept == again).double().mean()) == pytest.approx(0.7**2 + 0.3**2, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_draws_keep_type_and_shape(dtype: torch.dtype) -> None:
    dropped = hashed_dropout(torch.ones(3, 5, 7, dtype=dtype), 0.5)
    assert dropped.dtype == dtype and dropped.shape == (3, 5, 7)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}


def test_all_places_are_dropped_alike() -> None:
    torch.manual_seed(0)
    rows = Dropout(0.5)(torch.ones(4000, 24))
    assert ((rows == 0).double().mean(dim=0) - 0.5).abs().max() < 0.05
    neighbours = ((rows[:, 1:] == 0) == (rows[:, :-1] == 0)).double().mean()
    assert abs(float(neighbours) - 0.5) < 0.02, "neighbours are dropped independently"


def test_a_seed_repeats_the_draw_and_calls_differ() -> None:
    dropout, x = Dropout(0.5), torch.randn(3, 5, 7)
    torch.manual_seed(4)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(4)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout(x), second)
    assert not torch.equal(first, second)


def test_the_gradient_is_dropped_where_the_value_is() -> None:
    x = torch.ones(1000, requires_grad=True)
    y = Dropout(0.4)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (9,), (3, 5), (2, 0, 3), (1, 3, 11)])
def test_any_shape_keeps_its_shape(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_dtype_and_layout_is_kept(dtype: torch.dtype) -> None:
    x = torch.ones(6, 4, dtype=dtype).t()
    dropped = Dropout(0.5)(x)
    assert dropped.dtype == dtype
    assert set(dropped.flatten().tolist()) <= {0.0, 2.0}


def test_evaluation_and_probability_zero_change_nothing() -> None:
    x = torch.randn(10)
    state = torch.get_rng_state()
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(0.9).eval()(x), x)
    assert torch.equal(torch.get_rng_state(), state), "and draw nothing"


@pytest.mark.parametrize("probability", [-0.1, 1.0, 2.0])
def test_a_probability_outside_of_its_range_is_an_error(probability: float) -> None:
    with pytest.raises(ValueError, match=rf"^dropout probability is {probability}; it must be in \[0, 1\)$"):
        Dropout(probability)


def test_the_printout_shows_the_probability() -> None:
    assert repr(Dropout(0.25)) == "Dropout(0.25)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_drops_the_asked_share_too() -> None:
    dropped = Dropout(0.25)(torch.ones(MANY, device="cuda"))
    assert float((dropped == 0).double().mean()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_drops_compiled_what_it_drops_as_it_is() -> None:
    # Shifts, and products of integers that overflow, are the same in compiled code; it is these that a layer takes.
    layer = Dropout(0.3)
    dropout = torch.compile(lambda x: layer(torch.nn.functional.silu(x), marker=x), dynamic=True)
    for shape in [(7, 50, 96), (3, 20, 96)]:
        x = torch.randn(shape, device="cuda", requires_grad=True)
        torch.manual_seed(4)
        expected = hashed_dropout(torch.nn.functional.silu(x), 0.3, marker=x)
        torch.manual_seed(4)
        found = dropout(x)
        assert torch.equal(found == 0, expected == 0)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(each.sum(), x)[0] for each in (found, expected)))
        assert 0.25 < float((found == 0).double().mean()) < 0.35
        assert not torch.equal(dropout(x) == 0, expected == 0)
