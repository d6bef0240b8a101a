"""Attention in training on a GPU, forward and backward, with masks, and for queries that are wider than the values.

PyTorch's newer kernels take neither; what it has for them takes several times as long. As in
FlashAttention-2 (Dao 2023), no weights are ever in memory: the forward pass goes through the keys with a running
softmax and keeps the logarithm of its sum, and the backward pass computes the weights anew. Nothing is added up by
several programs, so equal arguments and draws give equal gradients. Needs Triton, which comes with PyTorch for CUDA on
Linux.
"""

# B sequences, T queries, S keys, H heads, E width of the values, E' width of queries and keys

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_BYTES = 256  # of a row of queries, keys or values, so that their tiles fit beside each other
_UNITS = {torch.bfloat16: 8, torch.float16: 8, torch.float32: 4}  # numbers in 16 bytes
# Of 16-bit numbers: rows of a program, rows of the others at a time, warps, and loads ahead; found by trying on an H200
# (32 utterances of 375 frames, values 64 wide, queries twice that).
_TILES = {"forward": (128, 64, 4, 2), "of queries": (64, 32, 4, 3), "of keys": (64, 64, 4, 2)}


def fits(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the kernels can do it; their arguments are those of `asr.nn.attention.attend`, on one GPU.

    Rows must be whole multiples of 16 bytes, which are loaded at once.
    """
    if queries.dtype not in _UNITS or not queries.dtype == keys.dtype == values.dtype:
        return False
    size, unit = queries.element_size(), _UNITS[queries.dtype]
    widths_fit = all(x.shape[-1] * size <= _MOST_BYTES and x.shape[-1] % unit == 0 for x in (queries, values))
    return widths_fit and queries.shape[:2] == keys.shape[:2] == values.shape[:2]


# As operations of their own, which the compiler does not look into, they do not break a block in pieces. The forward
# pass draws in here, as the compiler keeps one of two draws with the same arguments; layers always differ in theirs.


@torch.library.custom_op("asr::attention", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled dot-product attention; the arguments are those of `asr.nn.attention.attend`.

    Returns:
        The context (B, H, T, E), with the heads of a query side by side in memory, and what the backward pass needs:
        logarithms to base 2 of the softmax's sums (B, H, T), and the draws of the dropout (B, H, T + S), or (0,)
        without.
    """
    (batch, num_heads, num_queries, key_width), width, num_keys = queries.shape, values.shape[3], keys.shape[2]
    queries, keys, values = (_aligned(each) for each in (queries, keys, values))
    context, log_sums, draws = _outputs(queries, keys, values, dropout)
    if dropout:
        draws.random_(-(2**31), 2**31)
    mask_strides, mask_bytes = _mask(mask, (batch, num_heads, num_queries, num_keys))
    unit, tiles = _UNITS[queries.dtype], _tiles("forward", queries, values)
    with torch.cuda.device_of(queries):  # Triton launches on PyTorch's present device
        _forward_kernel[(triton.cdiv(num_queries, tiles["block"]) * batch * num_heads,)](
            queries, keys, values, mask_bytes, draws, context, log_sums, 1 / math.sqrt(width), dropout,
            num_heads, num_queries, num_keys, *_strides(unit, queries, keys, values), *mask_strides,
            key_width=key_width, width=width, unit=unit, has_dropout=dropout > 0, mask_rows=mask_strides[2] != 0,
            **tiles,
        )  # fmt: skip
    return context, log_sums, draws


@attention.register_fake
def _(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(queries, keys, values, dropout)


@torch.library.custom_op("asr::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, context: Tensor,
    log_sums: Tensor, draws: Tensor, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of queries, keys and values, with the heads of a query or key side by side in memory."""
    (batch, num_heads, num_queries, key_width), width, num_keys = queries.shape, values.shape[3], keys.shape[2]
    tensors = [_aligned(each) for each in (queries, keys, values, context, grad.to(context.dtype))]
    gradients = [_with_heads_side_by_side(each, each.shape[3]) for each in (queries, keys, values)]
    shares = torch.empty_like(log_sums)
    mask_strides, mask_bytes = _mask(mask, (batch, num_heads, num_queries, num_keys))
    unit = _UNITS[queries.dtype]
    of_queries, of_keys = (_tiles(name, queries, values) for name in ("of queries", "of keys"))
    numbers = 1 / math.sqrt(width), dropout, num_heads, num_queries, num_keys
    constants = {
        "key_width": key_width, "width": width, "unit": unit, "has_dropout": dropout > 0,
        "mask_rows": mask_strides[2] != 0,
    }  # fmt: skip
    with torch.cuda.device_of(queries):
        _backward_of_queries_kernel[(triton.cdiv(num_queries, of_queries["block"]) * batch * num_heads,)](
            *tensors, mask_bytes, draws, log_sums, shares, gradients[0],
            *numbers, *_strides(unit, *tensors), *mask_strides, **constants, **of_queries,
        )  # fmt: skip
        queries, keys, values, _, grad = tensors
        _backward_of_keys_kernel[(triton.cdiv(num_keys, of_keys["block"]) * batch * num_heads,)](
            queries, keys, values, grad, mask_bytes, draws, log_sums, shares, *gradients[1:],
            *numbers, *_strides(unit, queries, keys, values, grad), *mask_strides, **constants, **of_keys,
        )  # fmt: skip
    return gradients[0], gradients[1], gradients[2]


@_attention_backward.register_fake
def _(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, context: Tensor,
    log_sums: Tensor, draws: Tensor, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    of_queries, of_keys, of_values = (_with_heads_side_by_side(each, each.shape[3]) for each in (queries, keys, values))
    return of_queries, of_keys, of_values


def _keep(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, float], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.dropout = inputs[4]
    ctx.set_materialize_grads(False)  # nothing depends on the sums and the draws


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    return *_attention_backward(grad, *ctx.saved_tensors, ctx.dropout), None, None


attention.register_autograd(_backward, setup_context=_keep)


def _outputs(queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_heads, num_queries, _ = queries.shape
    context = _with_heads_side_by_side(queries, values.shape[3])
    log_sums = queries.new_empty(batch, num_heads, num_queries, dtype=torch.float32)
    shape = (batch, num_heads, num_queries + keys.shape[2]) if dropout else (0,)
    return context, log_sums, queries.new_empty(shape, dtype=torch.int32)


def _with_heads_side_by_side(x: Tensor, width: int) -> Tensor:
    """An empty tensor (B, H, T, `width`) for `x`, (B, H, T, any), that is (B, T, H, `width`) in memory."""
    batch, num_heads, length, _ = x.shape
    return x.new_empty(batch, length, num_heads, width).transpose(1, 2)


def _aligned(x: Tensor) -> Tensor:
    """The same numbers in rows that begin at multiples of 16 bytes, so that Triton may load 16 bytes at once.

    Strides are passed in that unit, which is the same for all lengths. Without it, ptxas 12.8, which comes with Triton
    3.6, loses a register of some kernels for 16-bit numbers, and they multiply with what lies elsewhere.
    """
    unit = _UNITS[x.dtype]
    is_aligned = x.stride(3) == 1 and all(stride % unit == 0 for stride in x.stride()[:3]) and x.data_ptr() % 16 == 0
    return x if is_aligned else x.clone(memory_format=torch.contiguous_format)


def _strides(unit: int, *tensors: Tensor) -> list[int]:
    return [stride // unit for each in tensors for stride in each.stride()[:3]]


def _mask(mask: Tensor | None, shape: tuple[int, int, int, int]) -> tuple[tuple[int, ...], Tensor | None]:
    """Strides and bytes of a mask of the whole shape (B, H, T, S); where it has one row for all, a stride is zero."""
    if mask is None:
        return (0, 0, 0, 0), None
    whole = mask.expand(shape)
    return whole.stride(), whole.view(torch.uint8)


def _tiles(kernel: str, queries: Tensor, values: Tensor) -> dict[str, int]:
    """Sizes of the tiles, with widths padded to powers of two, and how they are computed.

    In float32 tiles take twice the memory and no tensor cores, so they are smaller and shared by more threads.
    """
    block, step, num_warps, num_stages = _TILES[kernel] if queries.dtype != torch.float32 else (32, 32, 8, 2)
    return {
        "block": block,  # queries or keys of a program
        "step": step,  # keys or queries at a time
        "key_columns": max(16, triton.next_power_of_2(queries.shape[3])),  # 16 is the least that tensor cores take
        "columns": max(16, triton.next_power_of_2(values.shape[3])),
        "num_warps": num_warps,
        "num_stages": num_stages,
    }


@triton.jit
def _place(num_rows, num_heads, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of this program: the sequence, the head, the two as one number, and the first row of its tile."""
    num_tiles = tl.cdiv(num_rows, block)
    both = tl.program_id(0) // num_tiles
    start = (tl.program_id(0) % num_tiles) * block
    return (both // num_heads).to(tl.int64), (both % num_heads).to(tl.int64), both.to(tl.int64), start


@triton.jit
def _load(head, rows, row_stride, num_rows, width: tl.constexpr, columns: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of one head, zeros where there are none."""
    column = tl.arange(0, columns)
    exists = (rows[:, None] < num_rows) & (column[None, :] < width)
    return tl.load(head + rows[:, None] * row_stride + column[None, :], mask=exists, other=0.0)


@triton.jit
def _store(x, out, batch, head, rows, num_rows, num_heads, width: tl.constexpr, columns: tl.constexpr):  # type: ignore[no-untyped-def]
    """Writes rows of one head to a tensor that is (B, T, H, E) in memory."""
    column = tl.arange(0, columns)
    exists = (rows[:, None] < num_rows) & (column[None, :] < width)
    first = out + (batch * num_rows * num_heads + head) * width
    tl.store(first + rows[:, None] * (num_heads * width) + column[None, :], x.to(out.dtype.element_ty), mask=exists)


@triton.jit
def _seen(mask, query, key, row_stride, column_stride, num_queries, num_keys, mask_rows: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which keys are seen; numbers of queries and keys that broadcast to the tile."""
    seen = key < num_keys
    if mask is not None:
        if mask_rows:
            exists = seen & (query < num_queries)
            seen = tl.load(mask + query * row_stride + key * column_stride, mask=exists, other=0) != 0
        else:
            seen = tl.load(mask + key * column_stride, mask=seen, other=0) != 0
    return seen


@triton.jit
def _kept(of_query, of_key, dropout):  # type: ignore[no-untyped-def]
    """Which weights are kept: a draw of the query and one of the key, mixed as MurmurHash3 ends.

    A generator that counts (Philox) would take longer than the attention itself.
    """
    x = of_query.to(tl.uint32, bitcast=True) ^ of_key.to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x >= tl.cast(dropout * 4294967296.0, tl.uint32)


# Sizes change from batch to batch; Triton would compile anew for those that are multiples of 16. Strides follow them.
_SIZES = ["num_heads", "num_queries", "num_keys"]
_STRIDES = [f"{name}_{of}" for name in ("q", "k", "v", "o", "g", "m") for of in ("batch", "head", "row")] + ["m_column"]
_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit(do_not_specialize=_SIZES + [each for each in _STRIDES if each[0] in "qkvm"])
def _forward_kernel(  # type: ignore[no-untyped-def]
    q, k, v, mask, draws, out, log_sums, scale, dropout, num_heads, num_queries, num_keys,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, m_batch, m_head, m_row, m_column,
    key_width: tl.constexpr, width: tl.constexpr, unit: tl.constexpr, has_dropout: tl.constexpr,
    mask_rows: tl.constexpr, block: tl.constexpr, step: tl.constexpr, key_columns: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """The context of one tile of queries of one head."""
    batch, head, both, start = _place(num_queries, num_heads, block)
    q += (batch * q_batch + head * q_head) * unit
    k += (batch * k_batch + head * k_head) * unit
    v += (batch * v_batch + head * v_head) * unit
    if mask is not None:
        mask += batch * m_batch + head * m_head
    rows = start + tl.arange(0, block)
    queries = _load(q, rows, q_row * unit, num_queries, key_width, key_columns)
    if has_dropout:
        draws += both * (num_queries + num_keys)
        of_queries = tl.load(draws + rows, mask=rows < num_queries, other=0)

    highest = tl.full([block], float("-inf"), tl.float32)
    total = tl.zeros([block], tl.float32)
    context = tl.zeros([block, columns], tl.float32)
    for first in range(0, num_keys, step):
        others = first + tl.arange(0, step)
        keys = _load(k, others, k_row * unit, num_keys, key_width, key_columns)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * _LOG2_E)
        seen = _seen(mask, rows[:, None], others[None, :], m_row, m_column, num_queries, num_keys, mask_rows)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - safe[:, None])
        shrunk = tl.exp2(highest - safe)
        total = total * shrunk + tl.sum(weights, axis=1)
        if has_dropout:
            of_keys = tl.load(draws + num_queries + others, mask=others < num_keys, other=0)
            weights = tl.where(_kept(of_queries[:, None], of_keys[None, :], dropout), weights, 0.0)
        values = _load(v, others, v_row * unit, num_keys, width, columns)
        context = context * shrunk[:, None]
        context += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        highest = higher

    sees = total > 0
    factor = 1 / tl.where(sees, total, 1.0)
    if has_dropout:
        factor = factor / (1 - dropout)
    _store(context * factor[:, None], out, batch, head, rows, num_queries, num_heads, width, columns)
    # With an infinite sum, all weights of a query that sees nothing are zero in the backward pass.
    log_sum = tl.where(sees, highest + tl.log2(tl.where(sees, total, 1.0)), float("inf"))
    tl.store(log_sums + both * num_queries + rows, log_sum, mask=rows < num_queries)


@triton.jit(do_not_specialize=_SIZES + _STRIDES)
def _backward_of_queries_kernel(  # type: ignore[no-untyped-def]
    q, k, v, o, g, mask, draws, log_sums, shares, q_grad, scale, dropout, num_heads, num_queries, num_keys,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row,
    g_batch, g_head, g_row, m_batch, m_head, m_row, m_column,
    key_width: tl.constexpr, width: tl.constexpr, unit: tl.constexpr, has_dropout: tl.constexpr,
    mask_rows: tl.constexpr, block: tl.constexpr, step: tl.constexpr, key_columns: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """The gradient of one tile of queries of one head, and the products of their contexts with their gradients."""
    batch, head, both, start = _place(num_queries, num_heads, block)
    q += (batch * q_batch + head * q_head) * unit
    k += (batch * k_batch + head * k_head) * unit
    v += (batch * v_batch + head * v_head) * unit
    o += (batch * o_batch + head * o_head) * unit
    g += (batch * g_batch + head * g_head) * unit
    if mask is not None:
        mask += batch * m_batch + head * m_head
    rows = start + tl.arange(0, block)
    queries = _load(q, rows, q_row * unit, num_queries, key_width, key_columns)
    context = _load(o, rows, o_row * unit, num_queries, width, columns)
    grad = _load(g, rows, g_row * unit, num_queries, width, columns)
    share = tl.sum(context.to(tl.float32) * grad.to(tl.float32), axis=1)
    tl.store(shares + both * num_queries + rows, share, mask=rows < num_queries)
    log_sum = tl.load(log_sums + both * num_queries + rows, mask=rows < num_queries, other=float("inf"))
    if has_dropout:
        draws += both * (num_queries + num_keys)
        of_queries = tl.load(draws + rows, mask=rows < num_queries, other=0)

    of_q = tl.zeros([block, key_columns], tl.float32)
    for first in range(0, num_keys, step):
        others = first + tl.arange(0, step)
        keys = _load(k, others, k_row * unit, num_keys, key_width, key_columns)
        values = _load(v, others, v_row * unit, num_keys, width, columns)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * _LOG2_E)
        seen = _seen(mask, rows[:, None], others[None, :], m_row, m_column, num_queries, num_keys, mask_rows)
        weights = tl.where(seen, tl.exp2(scores - log_sum[:, None]), 0.0)
        of_weights = tl.dot(grad, tl.trans(values), input_precision="ieee")
        if has_dropout:
            of_keys = tl.load(draws + num_queries + others, mask=others < num_keys, other=0)
            kept = _kept(of_queries[:, None], of_keys[None, :], dropout)
            of_weights = tl.where(kept, of_weights * (1 / (1 - dropout)), 0.0)
        of_scores = weights * (of_weights - share[:, None])
        of_q += tl.dot(of_scores.to(keys.dtype), keys, input_precision="ieee")
    _store(of_q * scale, q_grad, batch, head, rows, num_queries, num_heads, key_width, key_columns)


@triton.jit(do_not_specialize=_SIZES + [each for each in _STRIDES if each[0] != "o"])
def _backward_of_keys_kernel(  # type: ignore[no-untyped-def]
    q, k, v, g, mask, draws, log_sums, shares, k_grad, v_grad, scale, dropout, num_heads, num_queries, num_keys,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, g_batch, g_head, g_row,
    m_batch, m_head, m_row, m_column,
    key_width: tl.constexpr, width: tl.constexpr, unit: tl.constexpr, has_dropout: tl.constexpr,
    mask_rows: tl.constexpr, block: tl.constexpr, step: tl.constexpr, key_columns: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """The gradients of one tile of keys, and their values, of one head. Tiles of weights are transposed here."""
    batch, head, both, start = _place(num_keys, num_heads, block)
    q += (batch * q_batch + head * q_head) * unit
    k += (batch * k_batch + head * k_head) * unit
    v += (batch * v_batch + head * v_head) * unit
    g += (batch * g_batch + head * g_head) * unit
    if mask is not None:
        mask += batch * m_batch + head * m_head
    log_sums += both * num_queries
    shares += both * num_queries
    rows = start + tl.arange(0, block)
    keys = _load(k, rows, k_row * unit, num_keys, key_width, key_columns)
    values = _load(v, rows, v_row * unit, num_keys, width, columns)
    if has_dropout:
        draws += both * (num_queries + num_keys)
        of_keys = tl.load(draws + num_queries + rows, mask=rows < num_keys, other=0)

    of_k = tl.zeros([block, key_columns], tl.float32)
    of_v = tl.zeros([block, columns], tl.float32)
    for first in range(0, num_queries, step):
        others = first + tl.arange(0, step)
        exists = others < num_queries
        queries = _load(q, others, q_row * unit, num_queries, key_width, key_columns)
        grad = _load(g, others, g_row * unit, num_queries, width, columns)
        log_sum = tl.load(log_sums + others, mask=exists, other=float("inf"))
        share = tl.load(shares + others, mask=exists, other=0.0)
        scores = tl.dot(keys, tl.trans(queries), input_precision="ieee") * (scale * _LOG2_E)
        seen = _seen(mask, others[None, :], rows[:, None], m_row, m_column, num_queries, num_keys, mask_rows)
        weights = tl.where(seen, tl.exp2(scores - log_sum[None, :]), 0.0)
        of_weights = tl.dot(values, tl.trans(grad), input_precision="ieee")
        used = weights
        if has_dropout:
            of_queries = tl.load(draws + others, mask=exists, other=0)
            kept = _kept(of_queries[None, :], of_keys[:, None], dropout)
            used = tl.where(kept, weights * (1 / (1 - dropout)), 0.0)
            of_weights = tl.where(kept, of_weights * (1 / (1 - dropout)), 0.0)
        of_v += tl.dot(used.to(grad.dtype), grad, input_precision="ieee")
        of_scores = weights * (of_weights - share[None, :])
        of_k += tl.dot(of_scores.to(queries.dtype), queries, input_precision="ieee")
    _store(of_k * scale, k_grad, batch, head, rows, num_keys, num_heads, key_width, key_columns)
    _store(of_v, v_grad, batch, head, rows, num_keys, num_heads, width, columns)
