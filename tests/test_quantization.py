"""Weights in eight bits: every row keeps its own scale, and all else is as it was."""

import pytest
import torch

from asr.quantization import dequantize, quantize


def test_a_row_is_rounded_to_steps_of_its_own() -> None:
    matrix = torch.tensor([[1.27, -0.634, 0.0], [0.0, 0.0, 0.0], [127e-6, 1e-6, -1.4e-6]])
    stored = quantize({"m": matrix})
    assert stored["m"].tolist() == [[127, -63, 0], [0, 0, 0], [127, 1, -1]]
    assert stored["m.row_scales"].tolist() == pytest.approx([0.01, 0.0, 1e-6])
    back = dequantize(stored)
    assert back.keys() == {"m"}
    torch.testing.assert_close(back["m"], torch.tensor([[1.27, -0.63, 0], [0, 0, 0], [127e-6, 1e-6, -1e-6]]))


def test_no_weight_moves_by_more_than_half_a_step_whatever_the_shape() -> None:
    kernel = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    back = dequantize(quantize({"k": kernel}))["k"]
    assert back.shape == kernel.shape
    steps = kernel.flatten(1).abs().amax(dim=1) / 127
    assert ((back - kernel).abs().flatten(1).amax(dim=1) <= 0.5001 * steps).all()


def test_vectors_are_kept_in_half_precision_and_integers_as_they_are() -> None:
    weights = {"v": torch.tensor([0.1, 2.0]), "steps": torch.tensor([3])}
    back = dequantize(quantize(weights))
    assert back["v"].dtype == torch.float16 and back["steps"].dtype == torch.int64
    assert torch.equal(back["v"], weights["v"].half()) and back["steps"].tolist() == [3]


def test_weights_that_were_never_rounded_come_back_as_they_are() -> None:
    weights = {"m": torch.ones(2, 2, dtype=torch.bfloat16), "v": torch.ones(2)}
    back = dequantize(weights)
    assert back["m"] is weights["m"] and back["v"] is weights["v"]
