"""Attention against the formulas of the papers, written as loops over single queries and keys."""

import math
from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from asr.nn.attention import KeyValueCache, MultiHeadAttention, RelativeAttention, attend, position_code
from asr.nn.masks import causal_mask, halved, valid_mask

WIDTH, HEADS = 12, 2
B, T = 2, 7


def relative_attention(*, width: int = WIDTH, num_heads: int = HEADS, position_width: int = 0) -> RelativeAttention:
    torch.manual_seed(0)
    return tiny.randomized(RelativeAttention(width, num_heads=num_heads, position_width=position_width)).double()


def multi_head_attention() -> MultiHeadAttention:
    torch.manual_seed(0)
    return tiny.randomized(MultiHeadAttention(WIDTH, num_heads=HEADS)).double()


def inputs(*, length: int = T, width: int = WIDTH, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, length, width, generator=generator, dtype=torch.float64)


def sinusoids_of(distance: int, position_width: int) -> Tensor:
    """The code r of one distance: sines, then cosines, of geometric frequencies."""
    angles = [distance / 10_000 ** (2 * m / position_width) for m in range(position_width // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def slow_relative_attention(attention: RelativeAttention, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Output and weights by (q_i + u)ᵀ k_j + (q_i + v)ᵀ W r_{i-j}, one score at a time; `hidden` is (B, T) of keys."""
    batch, length, _ = x.shape
    heads, head_width = attention.num_heads, attention.head_width
    query, key, value = attention.query_key_value(x).chunk(3, dim=-1)
    weights = torch.zeros(batch, heads, length, length, dtype=torch.float64)
    context = torch.zeros_like(x)
    for b in range(batch):
        for h in range(heads):
            own = slice(h * head_width, (h + 1) * head_width)
            u, v = attention.content_bias[h, 0], attention.position_bias[h, 0]
            for i in range(length):
                q = query[b, i, own]
                scores = torch.full((length,), -math.inf, dtype=torch.float64)
                for j in range(length):
                    r = sinusoids_of(i - j, attention.position_width)
                    score = (q + u) @ key[b, j, own] + (q + v) @ (attention.position_weight[h] @ r)
                    if not hidden[b, j]:
                        scores[j] = score / math.sqrt(head_width)
                weights[b, h, i] = scores.softmax(dim=0)
                context[b, i, own] = weights[b, h, i] @ value[b, :, own]
    return attention.output(context), weights


# Relative positions


@pytest.mark.parametrize(
    ("width", "num_heads", "position_width"), [(12, 2, 0), (12, 4, 0), (12, 1, 20), (8, 2, 2), (1, 1, 0)]
)
@torch.no_grad()
def test_relative_attention_equals_the_formula_of_the_paper(width: int, num_heads: int, position_width: int) -> None:
    attention = relative_attention(width=width, num_heads=num_heads, position_width=position_width)
    x = inputs(width=width)
    hidden = torch.zeros(B, T, dtype=torch.bool)
    hidden[1, 4:] = True
    expected, weights = slow_relative_attention(attention, x, hidden)
    mask = ~hidden[:, None, None]
    # The code of the positions is float32 whatever the weights are.
    torch.testing.assert_close(attention(x, mask=mask), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(attention.weights(x, mask=mask).double(), weights, atol=1e-6, rtol=0)


@torch.no_grad()
def test_relative_attention_without_a_mask_sees_every_frame() -> None:
    attention, x = relative_attention(), inputs()
    everything = torch.ones(B, 1, 1, T, dtype=torch.bool)
    torch.testing.assert_close(attention(x), attention(x, mask=everything))
    assert (attention.weights(x) > 0).all()


@torch.no_grad()
def test_the_two_biases_and_the_positions_all_have_an_effect() -> None:
    x = inputs()
    for name in ("content_bias", "position_bias", "position_weight"):
        attention = relative_attention()
        before = attention(x)
        getattr(attention, name).zero_()
        assert (attention(x) - before).abs().max() > 1e-3, name


@pytest.mark.parametrize("offset", [1, 8, 500])
@torch.no_grad()
def test_only_distances_count_so_shifted_frames_get_the_same_output(offset: int) -> None:
    attention, x = relative_attention(), inputs()
    shifted = torch.cat([inputs(length=offset, seed=2), x], dim=1)
    mask = (torch.arange(offset + T) >= offset)[None]
    torch.testing.assert_close(attention(shifted, mask=mask)[:, offset:], attention(x), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_direction_of_a_distance_counts() -> None:
    attention = relative_attention()
    x = inputs(length=1).expand(B, T, WIDTH)  # equal frames: only positions can make weights differ
    weights = attention.weights(x)
    assert (weights - weights.transpose(-2, -1)).abs().max() > 1e-3


def test_position_code_is_sinusoidal() -> None:
    cosines, sines = position_code(torch.arange(5), 6)
    assert cosines.dtype == sines.dtype == torch.float32
    for position in range(5):
        row = torch.cat([sines[position], cosines[position]]).double()
        torch.testing.assert_close(row, sinusoids_of(position, 6), atol=1e-6, rtol=0)


# Absolute attention


@torch.no_grad()
def test_multi_head_attention_equals_pytorch() -> None:
    attention, query, memory = multi_head_attention(), inputs(), inputs(length=5, seed=2)
    hidden = torch.tensor([[False] * 5, [False, False, True, True, True]])
    expected, weights = torch.nn.functional.multi_head_attention_forward(
        query.transpose(0, 1),
        memory.transpose(0, 1),
        memory.transpose(0, 1),
        embed_dim_to_check=WIDTH,
        num_heads=HEADS,
        in_proj_weight=torch.cat([attention.query.weight, attention.key_value.weight]),
        in_proj_bias=torch.cat([attention.query.bias, attention.key_value.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.output.weight,
        out_proj_bias=attention.output.bias,
        training=False,
        key_padding_mask=hidden,
        average_attn_weights=False,
    )
    mask = ~hidden[:, None, None]
    torch.testing.assert_close(attention(query, memory, mask=mask), expected.transpose(0, 1))
    shown = attention.weights(query, memory, mask=mask)
    torch.testing.assert_close(shown.double(), weights, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_projected_memory_takes_the_place_of_the_memory() -> None:
    attention, query, memory = multi_head_attention(), inputs(), inputs(length=5, seed=2)
    expected = attention(query, memory)
    torch.testing.assert_close(attention(query, query, cache=attention.project_memory(memory)), expected)


@torch.no_grad()
def test_a_cache_grown_by_parts_equals_the_cache_of_the_whole() -> None:
    attention, memory = multi_head_attention(), inputs()
    whole = attention.project_memory(memory)
    new = attention.project_memory(memory[:, 3:])
    first = attention.project_memory(memory[:, :3])
    grown = first.appended(new.keys, new.values)
    torch.testing.assert_close(grown.keys, whole.keys)
    torch.testing.assert_close(grown.values, whole.values)
    assert first.keys.shape[2] == 3, "the shorter cache stays as it was"


def test_a_selected_cache_holds_the_chosen_sequences_in_order() -> None:
    keys, values = torch.randn(3, HEADS, T, 4), torch.randn(3, HEADS, T, 4)
    chosen = KeyValueCache(keys, values).select(torch.tensor([2, 0, 2, 1]))
    assert torch.equal(chosen.keys, keys[[2, 0, 2, 1]])
    assert torch.equal(chosen.values, values[[2, 0, 2, 1]])


def test_layers_of_the_same_sizes_can_share_the_code_of_the_positions() -> None:
    x, mask = inputs(), torch.ones(T, dtype=torch.bool)
    mask[-1] = False
    one, other = relative_attention(), relative_attention()
    for attention in (one, other):
        code = one.code(x)
        assert torch.equal(attention(x, mask=mask, code=code), attention(x, mask=mask))
        assert torch.equal(attention.weights(x, mask=mask, code=code), attention.weights(x, mask=mask))
    assert not torch.equal(one(x, code=one.code(x).flip(0)), one(x)), "it is the code that is used"
    for wrong in (one.code(x)[:, :3], one.code(x)[:1]):
        with pytest.raises(
            ValueError, match=r"^a code of shape .* is not of \d+ positions and 6 wide; take what `code` "
        ):
            one(x, code=wrong)


# Both


@pytest.mark.parametrize("make", [RelativeAttention, MultiHeadAttention])
def test_weights_are_dropped_in_training_only(make: Callable[..., torch.nn.Module]) -> None:
    attention = make(WIDTH, num_heads=HEADS, dropout=0.5).double()
    x = inputs()
    arguments = (x,) if make is RelativeAttention else (x, x)
    torch.manual_seed(0)
    assert not torch.equal(attention(*arguments), attention(*arguments))
    attention.eval()
    assert torch.equal(attention(*arguments), attention(*arguments))


def test_the_log_weights_of_a_head_are_the_logarithms_of_its_weights_and_have_a_gradient() -> None:
    attention = MultiHeadAttention(WIDTH, num_heads=HEADS).double()
    query, memory = inputs(), inputs().flip(1)[:, :3]
    mask = torch.ones(len(query), 1, 1, 3, dtype=torch.bool)
    mask[0, :, :, 2] = False
    for head in range(HEADS):
        found = attention.log_weights(query, memory, head=head, mask=mask)
        expected = attention.weights(query, memory, mask=mask)[:, head]
        torch.testing.assert_close(found.exp(), expected.to(found.dtype), atol=1e-5, rtol=0)
    attention.log_weights(query, memory, head=0)[:, :, 0].sum().backward()
    gradient = attention.query.weight.grad
    assert gradient is not None and gradient[: WIDTH // HEADS].abs().sum() > 0
    assert not gradient[WIDTH // HEADS :].any()


@pytest.mark.parametrize("make", [RelativeAttention, MultiHeadAttention])
def test_a_width_that_the_heads_do_not_divide_is_an_error(make: Callable[..., torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"^width 10 is not a multiple of num_heads 4; choose a width that is$"):
        make(10, num_heads=4)


def test_an_odd_position_width_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^position_width 5 is odd; sines and cosines come in pairs$"):
        RelativeAttention(WIDTH, num_heads=HEADS, position_width=5)


# Masks


def test_masks_and_halved_lengths() -> None:
    assert valid_mask(torch.tensor([0, 2, 3]), 3).tolist() == [[False] * 3, [True, True, False], [True] * 3]
    assert causal_mask(3, torch.device("cpu")).tolist() == [[True, False, False], [True, True, False], [True] * 3]
    assert halved(torch.arange(1, 8)).tolist() == [1, 1, 2, 2, 3, 3, 4]


# The kernels


HIDDEN: dict[str, Tensor | None] = {
    "nothing": None,
    "keys": valid_mask(torch.tensor([3, 9]), 9)[:, None, None],
    "keys ahead": causal_mask(9, torch.device("cpu")),
    "all keys of a sequence": valid_mask(torch.tensor([0, 9]), 9)[:, None, None],
    "all keys of a query": causal_mask(9, torch.device("cpu")).tril(-1),
}


def queries_keys_values(*, extra: int, dtype: torch.dtype) -> list[Tensor]:
    """Heads of width 6 that require gradients; queries and keys are wider by `extra`."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(B, HEADS, 9, 6 + extra), (B, HEADS, 9, 6 + extra), (B, HEADS, 9, 6)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)]
)
def test_attend_equals_pytorch_and_so_do_its_gradients(
    hidden: str, extra: int, dtype: torch.dtype, tolerance: float
) -> None:
    tensors, mask = queries_keys_values(extra=extra, dtype=dtype), HIDDEN[hidden]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = scaled_dot_product_attention(*exact, attn_mask=mask, scale=6**-0.5)
    context = attend(*tensors, mask=mask, dropout=0.0)
    assert context.dtype == dtype
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected_gradients = torch.autograd.grad(expected, exact, slope)
    gradients = torch.autograd.grad(context, tensors, slope.to(dtype))
    for ours, plain in zip([context, *gradients], [expected, *expected_gradients], strict=True):
        torch.testing.assert_close(ours.double(), plain, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_drops_the_asked_share_of_the_weights(extra: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # Equal keys: each of the 400 has the weight 1/400. The values tell them apart.
    queries, keys = torch.ones(1, 1, 400, 400 + extra, dtype=dtype), torch.ones(1, 1, 400, 400 + extra, dtype=dtype)
    weights = attend(queries, keys, torch.eye(400, dtype=dtype)[None, None], mask=None, dropout=0.25) * 400
    assert float((weights == 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    kept = weights[weights != 0].double()
    torch.testing.assert_close(kept, torch.full_like(kept, 4 / 3), atol=0, rtol=1e-2)


@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_gives_zeros_to_a_query_that_sees_no_key_and_plain_attention_to_others(extra, dtype):
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(2, 2, 5, 4 + extra, generator=generator).to(dtype) for _ in range(2))
    values = torch.randn(2, 2, 5, 4, generator=generator).to(dtype)
    mask = torch.tensor([[True] * 4 + [False], [False] * 5])[:, None, None]
    found = attend(queries, keys, values, mask=mask, dropout=0.0)
    scores = queries[0].float() @ keys[0, :, :4].float().transpose(-2, -1) / 2
    expected = scores.softmax(dim=-1) @ values[0, :, :4].float()
    torch.testing.assert_close(found[0].float(), expected, atol=0.05 if dtype == torch.bfloat16 else 1e-5, rtol=0.0)
    assert (found[1] == 0).all()
