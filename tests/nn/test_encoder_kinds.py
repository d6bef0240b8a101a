"""Kinds of encoders: what their configs refuse, what they learn, where they look, and how they are kept on disk."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from asr import checkpoint
from asr.checkpoint import ModelConfig
from asr.losses import attention_loss, ctc_loss, teacher_forcing
from asr.nn.conformer import ConformerBlock, ConformerEncoder, EncoderConfig
from asr.nn.ebranchformer import EBranchformerBlock, GatingMLP
from asr.nn.inspection import attention_maps
from asr.nn.model import Recognizer

BRANCHES: dict[str, Any] = {"block": "ebranchformer", "cgmlp_width": 24, "merge_kernel_size": 3}
KINDS: dict[str, dict[str, Any]] = {
    "conformer": {},
    "separable conformer": {"subsampling_kind": "separable"},
    "e-branchformer": BRANCHES,
    "separable e-branchformer": {**BRANCHES, "subsampling_kind": "separable"},
}
NEW_SETTINGS = {"block", "cgmlp_width", "merge_kernel_size", "subsampling_kind"}


def make_config(kind: str, *, dropout: float = 0.1) -> ModelConfig:
    config = tiny.make_config(num_decoder_layers=1, dropout=dropout)
    return replace(config, encoder=replace(config.encoder, **KINDS[kind]))


def make_model(kind: str, *, dropout: float = 0.1) -> Recognizer:
    torch.manual_seed(0)
    return checkpoint.build_model(make_config(kind, dropout=dropout), tiny.make_tokenizer())


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_has_one_frame_of_its_width_for_four_of_the_features(kind: str) -> None:
    encoder = make_model(kind).encoder
    output = encoder(torch.randn(3, 30, tiny.NUM_MELS), torch.tensor([30, 1, 17]))
    assert output.frames.shape == (3, 8, tiny.WIDTH)
    assert output.lengths.tolist() == [8, 1, 5] == encoder.output_lengths(torch.tensor([30, 1, 17])).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_an_encoder_gets_a_gradient(kind: str, dtype: torch.dtype) -> None:
    encoder = tiny.randomized(make_model(kind).encoder).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        frames = encoder(torch.randn(3, 60, tiny.NUM_MELS), torch.tensor([60, 33, 48])).frames
    (frames.float() * torch.randn(frames.shape)).sum().backward()
    without = [name for name, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []
    assert all(weight.grad.isfinite().all() for weight in encoder.parameters() if weight.grad is not None)


def loss_of_two(model: Recognizer, features: Tensor, lengths: Tensor) -> Tensor:
    """CTC and attention loss of two utterances together, in nats."""
    tokens, token_lengths = torch.tensor([[3, 4, 5, 3], [5, 3, 0, 0]]), torch.tensor([4, 2])
    encoded = model.encoder(features, lengths)
    inputs, targets = teacher_forcing(tokens, token_lengths)
    assert model.decoder is not None
    logits = model.decoder(inputs, encoded.frames, encoded.lengths)
    ctc = ctc_loss(model.ctc_log_probs(encoded.frames), encoded.lengths, tokens, token_lengths).sum()
    return ctc + attention_loss(logits, targets, label_smoothing=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recogniser_learns_a_batch_by_heart(kind: str) -> None:
    model = make_model(kind, dropout=0.0).train()
    features, lengths = model.features(*tiny.pad([tiny.noise(4000, seed=1), tiny.noise(2800, seed=2)]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [math.inf]
    while losses[-1] > 0.1 and len(losses) < 200:
        optimizer.zero_grad()
        loss = loss_of_two(model, features, lengths)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] > 10
    assert losses[-1] <= 0.1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_maps_are_those_of_every_block(kind: str) -> None:
    model = tiny.randomized(make_model(kind))
    maps = attention_maps(model, torch.randn(1, 40, tiny.NUM_MELS), torch.tensor([40]), torch.tensor([[1, 3]]))
    assert [tuple(each.shape) for each in maps.encoder] == [(1, 2, 10, 10)] * 2
    for each in maps.encoder:
        torch.testing.assert_close(each.sum(-1), torch.ones(1, 2, 10))


@pytest.mark.parametrize(("kind", "block"), [("conformer", ConformerBlock), ("e-branchformer", EBranchformerBlock)])
def test_the_blocks_are_of_the_kind_that_the_config_names(kind: str, block: type) -> None:
    model = make_model(kind)
    assert [type(each) for each in model.encoder.layers()] == [block, block]
    assert model.decoder is not None
    assert model.blocks_to_compile() == [*model.encoder.layers(), *model.decoder.layers()]


@torch.no_grad()
def test_the_gates_of_a_new_block_are_open() -> None:
    torch.manual_seed(0)
    module = GatingMLP(tiny.WIDTH, inner_width=24, kernel_size=5, dropout=0.1).eval()
    x = torch.randn(2, 9, tiny.WIDTH)
    passed = module.activation(module.expand(module.norm(x)))[..., :12]
    ours = module(x, torch.ones(2, 9, 1, dtype=torch.bool))
    torch.testing.assert_close(ours, module.project(passed), atol=1e-4, rtol=0)


# On disk


def save(folder: Path, kind: str) -> Recognizer:
    model = tiny.randomized(make_model(kind))
    weights, tokenizer = model.state_dict(), tiny.make_tokenizer()
    checkpoint.save(folder, weights, config=make_config(kind), tokenizer=tokenizer, training={})
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_saved_recogniser_of_any_kind_is_the_same_when_it_is_loaded(kind: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", kind)
    loaded = checkpoint.load(tmp_path / "model")
    assert loaded.config == make_config(kind)
    waveforms, lengths = tiny.noise(3000)[None], torch.tensor([3000])
    assert torch.equal(loaded.model.encode(waveforms, lengths).frames, model.encode(waveforms, lengths).frames)


@torch.no_grad()
def test_a_model_from_before_there_were_kinds_is_a_conformer_with_plain_convolutions(tmp_path: Path) -> None:
    model = save(tmp_path, "conformer")
    path = tmp_path / "config.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    description["encoder"] = {key: value for key, value in description["encoder"].items() if key not in NEW_SETTINGS}
    path.write_text(json.dumps(description), encoding="utf-8")
    loaded = checkpoint.load(tmp_path)
    assert loaded.config == make_config("conformer")
    waveforms, lengths = tiny.noise(3000)[None], torch.tensor([3000])
    assert torch.equal(loaded.model.encode(waveforms, lengths).frames, model.encode(waveforms, lengths).frames)


def test_the_weights_of_a_conformer_have_the_names_that_saved_models_know() -> None:
    encoder = ConformerEncoder(tiny.make_encoder_config(), num_mels=tiny.NUM_MELS)
    names = {name.removesuffix(".weight").removesuffix(".bias") for name in encoder.state_dict()}
    feedforward = [f"feedforward_{place}.{layer}" for place in ("in", "out") for layer in (0, 1, 4)]
    attention = ["query_key_value", "output", "content_bias", "position_bias", "position_weight"]
    conv = ["norm", "expand", "depthwise", "depthwise_norm", "project"]
    parts = [
        *feedforward,
        "attention_norm",
        *(f"attention.{name}" for name in attention),
        *(f"conv.{name}" for name in conv),
        "norm",
    ]
    assert names == {
        *("subsampling.convs.0", "subsampling.convs.1", "subsampling.project"),
        *(f"blocks.{layer}.{part}" for layer in (0, 1) for part in parts),
    }
    assert encoder.state_dict()["blocks.0.conv.depthwise.weight"].shape == (tiny.WIDTH, 1, 5)


# Misuse


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "squeezeformer"}, r"^encoder.block is 'squeezeformer'; choose one of conformer, ebranchformer$"),
        ({"subsampling_kind": "pool"}, r"^encoder.subsampling_kind is 'pool'; choose one of conv, separable$"),
        (
            {"block": "ebranchformer", "width": 96},
            r"^encoder.cgmlp_width is 0; .* splits it in two halves: .* such as 6 times the width, 576$",
        ),
        ({**BRANCHES, "cgmlp_width": 25}, r"^encoder.cgmlp_width is 25; .* must be even and at least 2"),
        ({**BRANCHES, "cgmlp_width": -2}, r"^encoder.cgmlp_width is -2; .* must be even and at least 2"),
        (
            {**BRANCHES, "merge_kernel_size": 0},
            r"^encoder.merge_kernel_size is 0; it must be odd, so that frames .* such as encoder.kernel_size, 15$",
        ),
        ({**BRANCHES, "merge_kernel_size": 4}, r"^encoder.merge_kernel_size is 4; it must be odd"),
        ({**BRANCHES, "merge_kernel_size": -3}, r"^encoder.merge_kernel_size is -3; it must be odd"),
        (
            {"cgmlp_width": 24},
            r"^encoder.cgmlp_width is 24, which encoder.block=conformer has no use for; "
            r"set it to 0, or encoder.block=ebranchformer$",
        ),
        ({"merge_kernel_size": 3}, r"^encoder.merge_kernel_size is 3, which encoder.block=conformer has no use for"),
    ],
)
def test_settings_that_do_not_fit_the_kind_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**changes)
