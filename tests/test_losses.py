"""The losses against definitions that are written out: all alignments of CTC, label smoothing term by term."""

import itertools
import math
from typing import Any

import pytest
import torch
from alignments import collapse, transcript_probabilities
from torch import Tensor

from asr.lattice_free import PhoneTrigrams, log_partition
from asr.losses import (
    LossConfig,
    PhoneOutput,
    attention_loss,
    consistency_loss,
    ctc_loss,
    joint_loss,
    min_ctc_frames,
    teacher_forcing,
)
from asr.tokenizer import EOS_ID

VOCAB_SIZE = 4
TRANSCRIPTS = [(), (2,), (2, 3), (2, 2), (2, 2, 2), (3, 2, 2), (2, 3, 2, 3), (1,)]


def random_log_probs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(dim=-1)


def batch(transcripts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Tokens (B, U), padded, and their lengths (B,)."""
    longest = max(1, *map(len, transcripts))
    rows = [[*tokens, *[0] * (longest - len(tokens))] for tokens in transcripts]
    return torch.tensor(rows), torch.tensor([len(tokens) for tokens in transcripts])


# CTC


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_ctc_loss_is_the_sum_over_all_alignments(num_frames: int, seed: int) -> None:
    log_probs = random_log_probs(1, num_frames, VOCAB_SIZE, seed=seed)
    probabilities = transcript_probabilities(log_probs[0])
    tokens, token_lengths = batch(TRANSCRIPTS)
    repeated = log_probs.expand(len(TRANSCRIPTS), -1, -1)
    losses = ctc_loss(repeated, torch.full((len(TRANSCRIPTS),), num_frames), tokens, token_lengths)
    for tokens_of_one, loss in zip(TRANSCRIPTS, losses.tolist(), strict=True):
        probability = probabilities.get(tokens_of_one, 0.0)
        expected = -math.log(probability) if probability else math.inf
        assert loss == pytest.approx(expected, abs=1e-5), tokens_of_one


def test_ctc_loss_of_a_padded_batch_equals_batches_of_one() -> None:
    transcripts = [(2, 3, 2), (2, 2), (3,)]
    frame_lengths = torch.tensor([6, 4, 2])
    log_probs = random_log_probs(3, 6, VOCAB_SIZE)
    tokens, token_lengths = batch(transcripts)
    together = ctc_loss(log_probs, frame_lengths, tokens, token_lengths)
    for row, length in enumerate(frame_lengths.tolist()):
        own, own_length = batch([transcripts[row]])
        alone = ctc_loss(log_probs[row : row + 1, :length], torch.tensor([length]), own, own_length)
        torch.testing.assert_close(together[row], alone[0])


def test_ctc_loss_is_infinite_where_the_frames_cannot_carry_the_tokens() -> None:
    for tokens in TRANSCRIPTS:
        for num_frames in range(1, 7):
            padded, lengths = batch([tokens])
            log_probs = random_log_probs(1, num_frames, VOCAB_SIZE)
            loss = float(ctc_loss(log_probs, torch.tensor([num_frames]), padded, lengths))
            assert math.isinf(loss) == (num_frames < min_ctc_frames(list(tokens)))


@pytest.mark.parametrize("length", range(5))
def test_min_ctc_frames_is_the_shortest_path(length: int) -> None:
    """The shortest path that collapses to a transcript, found by trying all."""
    for tokens in itertools.product((1, 2), repeat=length):
        num_frames = next(
            n for n in range(8) if any(collapse(path) == tokens for path in itertools.product(range(3), repeat=n))
        )
        assert min_ctc_frames(list(tokens)) == num_frames


# Attention


def test_teacher_forcing_begins_and_ends_with_the_end_of_sentence() -> None:
    inputs, targets = teacher_forcing(*batch([(2, 3, 4), (5,), ()]))
    ignored = int(targets.min())
    assert ignored < 0, "what pads the targets is no token"
    assert inputs.tolist() == [[EOS_ID, 2, 3, 4], [EOS_ID, 5, 0, 0], [EOS_ID, 0, 0, 0]]
    assert targets.tolist() == [[2, 3, 4, EOS_ID], [5, EOS_ID, ignored, ignored], [EOS_ID] + [ignored] * 3]


def test_teacher_forcing_does_not_look_at_the_padding() -> None:
    tokens, lengths = batch([(2, 3, 4), (5,)])
    tokens[1, 1:] = 3
    _, targets = teacher_forcing(tokens, lengths)
    _, expected = teacher_forcing(*batch([(2, 3, 4), (5,)]))
    assert torch.equal(targets, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_attention_loss_is_the_cross_entropy_with_smoothed_targets(smoothing: float) -> None:
    _, targets = teacher_forcing(*batch([(2, 3, 2), (3,)]))
    logits = torch.randn(2, 4, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    log_probs = logits.double().log_softmax(dim=-1)
    expected = 0.0
    for row, place in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]:
        for token in range(VOCAB_SIZE):
            share = smoothing / VOCAB_SIZE + (1 - smoothing) * (token == int(targets[row, place]))
            expected -= share * float(log_probs[row, place, token])
    assert float(attention_loss(logits, targets, label_smoothing=smoothing)) == pytest.approx(expected, rel=1e-5)


# Both


def joint(
    config: LossConfig,
    rows: slice = slice(None),
    *,
    with_decoder: bool = True,
    num_layers: int = 2,
    phones: PhoneOutput | None = None,
) -> Any:
    """The loss of some rows of one batch, with the intermediate outputs of some layers."""
    transcripts = [(2, 3), (2, 2), (3,), ()][rows]
    tokens, token_lengths = batch(transcripts)
    tokens = torch.nn.functional.pad(tokens, (0, 2 - tokens.shape[1]))
    return joint_loss(
        config,
        log_probs=random_log_probs(4, 6, VOCAB_SIZE)[rows],
        intermediate_log_probs=[random_log_probs(4, 6, VOCAB_SIZE, seed=n)[rows] for n in range(5, 5 + num_layers)],
        frame_lengths=torch.tensor([6, 5, 3, 2])[rows],
        logits=random_log_probs(4, 3, VOCAB_SIZE, seed=9)[rows] if with_decoder else None,
        tokens=tokens,
        token_lengths=token_lengths,
        num_tokens=int(token_lengths.sum()),
        phones=phones,
    )


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_total_is_the_weighted_sum_of_the_parts(weight: float, share: float) -> None:
    loss = joint(LossConfig(ctc_weight=weight, intermediate_weight=share))
    parts = {name: float(value) for name, value in loss.parts.items()}
    ctc = (1 - share) * parts["ctc"] + share * parts.get("intermediate_ctc", 0.0)
    expected = weight * ctc + (1 - weight) * parts.get("attention", 0.0)
    assert float(loss.total) == pytest.approx(expected, rel=1e-6)
    assert ("intermediate_ctc" in parts) == (share > 0)
    assert ("attention" in parts) == (weight < 1)


def test_the_parts_are_the_losses_of_this_module() -> None:
    loss = joint(LossConfig(label_smoothing=0.2, intermediate_weight=0.5))
    tokens, token_lengths = batch([(2, 3), (2, 2), (3,), ()])
    lengths = torch.tensor([6, 5, 3, 2])
    ctc, *intermediate = (
        ctc_loss(random_log_probs(4, 6, VOCAB_SIZE, seed=seed), lengths, tokens, token_lengths).sum()
        for seed in (0, 5, 6)
    )
    _, targets = teacher_forcing(tokens, token_lengths)
    attention = attention_loss(random_log_probs(4, 3, VOCAB_SIZE, seed=9), targets, label_smoothing=0.2)
    torch.testing.assert_close(loss.parts["ctc"], ctc)
    torch.testing.assert_close(loss.parts["intermediate_ctc"], (intermediate[0] + intermediate[1]) / 2)
    torch.testing.assert_close(loss.parts["attention"], attention)
    assert loss.count == 5


def test_two_half_batches_add_up_to_the_whole_batch() -> None:
    config = LossConfig(intermediate_weight=0.3)
    whole, first, second = joint(config), joint(config, slice(0, 2)), joint(config, slice(2, 4))
    torch.testing.assert_close(first.total + second.total, whole.total)
    assert first.count + second.count == whole.count
    for name, value in whole.parts.items():
        torch.testing.assert_close(first.parts[name] + second.parts[name], value)


def test_without_a_decoder_the_loss_is_ctc_unweighted() -> None:
    loss = joint(LossConfig(ctc_weight=0.3), with_decoder=False)
    torch.testing.assert_close(loss.total, loss.parts["ctc"])


def test_without_intermediate_layers_their_weight_changes_nothing() -> None:
    with_weight = joint(LossConfig(intermediate_weight=0.5), num_layers=0)
    torch.testing.assert_close(with_weight.total, joint(LossConfig()).total)


def test_a_batch_of_empty_transcripts_counts_as_one_token() -> None:
    assert joint(LossConfig(), slice(3, 4)).count == 1


def test_only_the_total_carries_gradients() -> None:
    log_probs = random_log_probs(1, 4, VOCAB_SIZE).requires_grad_()
    tokens, token_lengths = batch([(2,)])
    loss = joint_loss(
        LossConfig(),
        log_probs=log_probs,
        intermediate_log_probs=[],
        frame_lengths=torch.tensor([4]),
        logits=random_log_probs(1, 2, VOCAB_SIZE),
        tokens=tokens,
        token_lengths=token_lengths,
        num_tokens=1,
    )
    assert loss.total.requires_grad and not any(part.requires_grad for part in loss.parts.values())


# Consistency of two views


def test_consistency_loss_is_the_mean_divergence_of_both_views_over_the_valid_frames() -> None:
    log_probs, lengths = random_log_probs(4, 5, VOCAB_SIZE), [5, 3]
    expected = []
    for row, length in enumerate(lengths):
        a, b = log_probs[row, :length], log_probs[row + 2, :length]
        forward = sum(float(p.exp() * (p - q)) for p, q in zip(b.flatten(), a.flatten(), strict=True))
        backward = sum(float(p.exp() * (p - q)) for p, q in zip(a.flatten(), b.flatten(), strict=True))
        expected.append((forward + backward) / 2)
    torch.testing.assert_close(consistency_loss(log_probs, torch.tensor(lengths * 2)), torch.tensor(expected))


def test_equal_views_are_consistent() -> None:
    view = random_log_probs(2, 5, VOCAB_SIZE)
    torch.testing.assert_close(consistency_loss(view.repeat(2, 1, 1), torch.tensor([5, 4, 5, 4])), torch.zeros(2))


def test_each_view_learns_from_the_other_which_is_held_fixed() -> None:
    a, b = random_log_probs(1, 3, VOCAB_SIZE).requires_grad_(), random_log_probs(1, 3, VOCAB_SIZE, seed=1)
    consistency_loss(torch.cat([a, b]), torch.tensor([3, 3])).sum().backward()
    torch.testing.assert_close(a.grad, -0.5 * b.exp())  # of the divergence from b; none of that towards b


def test_the_consistency_of_the_views_is_added_to_the_ctc_loss() -> None:
    without, with_it = joint(LossConfig(ctc_weight=0.4)), joint(LossConfig(ctc_weight=0.4, consistency_weight=0.2))
    expected = 2 * consistency_loss(random_log_probs(4, 6, VOCAB_SIZE), torch.tensor([6, 5, 3, 2])).sum()
    torch.testing.assert_close(with_it.parts["consistency"], expected)
    torch.testing.assert_close(with_it.total - without.total, 0.4 * 0.2 * expected)


def test_the_phones_add_their_ctc_loss_and_in_two_views_its_consistency() -> None:
    phones, lengths = batch([(1, 2, 1), (4,), (2, 2), (3,)])
    output = PhoneOutput(random_log_probs(4, 6, 5, seed=3), phones, lengths)
    frame_lengths = torch.tensor([6, 5, 3, 2])
    without, with_it = (joint(LossConfig(phone_weight=weight), phones=output) for weight in (0.0, 0.7))
    expected = ctc_loss(output.log_probs, frame_lengths, phones, lengths).sum()
    assert "phone_ctc" not in without.parts
    torch.testing.assert_close(with_it.parts["phone_ctc"], expected)
    torch.testing.assert_close(with_it.total - without.total, 0.7 * expected)
    assert with_it.count == without.count
    one, two = (joint(LossConfig(phone_weight=weight, consistency_weight=0.2), phones=output) for weight in (0.0, 0.7))
    consistency = 2 * consistency_loss(output.log_probs, frame_lengths).sum()
    torch.testing.assert_close(two.parts["phone_consistency"], consistency)
    torch.testing.assert_close(two.total - one.total, 0.7 * (expected + 0.2 * consistency))


def test_a_share_of_the_phones_loss_is_mmi() -> None:
    phones, lengths = batch([(1, 2, 1), (4,), (2, 2), (3,)])
    trigrams = PhoneTrigrams([[1, 2], [3, 4, 2], [2, 2]], num_phones=4)
    output = PhoneOutput(random_log_probs(4, 6, 5, seed=3), phones, lengths, trigrams=trigrams)
    frame_lengths = torch.tensor([6, 5, 3, 2])
    none, some = (joint(LossConfig(phone_weight=0.7, phone_mmi_share=share), phones=output) for share in (0.0, 0.4))
    ctc = ctc_loss(output.log_probs, frame_lengths, phones, lengths)
    competitors = log_partition(output.log_probs, frame_lengths, trigrams)
    expected = (ctc - trigrams.log_prob(phones, lengths) + competitors).sum()
    assert "phone_mmi" not in none.parts
    torch.testing.assert_close(some.parts["phone_ctc"], ctc.sum())
    torch.testing.assert_close(some.parts["phone_mmi"], expected)
    torch.testing.assert_close(some.total - none.total, 0.7 * 0.4 * (expected - ctc.sum()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phone_weight": 1.0, "phone_mmi_share": 1.1}, "loss.phone_mmi_share is 1.1; it must be in [0, 1]"),
        (
            {"phone_mmi_share": 0.5},
            "loss.phone_mmi_share is 0.5, but loss.phone_weight is 0, so it would change nothing; set "
            "loss.phone_weight too",
        ),
        ({"phone_weight": -1}, "loss.phone_weight is -1; it must not be negative"),
        ({"consistency_weight": -0.1}, "loss.consistency_weight is -0.1; it must not be negative"),
        ({"ctc_weight": -0.1}, "loss.ctc_weight is -0.1; it must be in [0, 1]"),
        ({"ctc_weight": 1.5}, "loss.ctc_weight is 1.5; it must be in [0, 1]"),
        ({"label_smoothing": 1.0}, "loss.label_smoothing is 1.0; it must be in [0, 1)"),
        ({"intermediate_weight": 1.0}, "loss.intermediate_weight is 1.0; it must be in [0, 1)"),
    ],
)
def test_errors_of_the_config(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        LossConfig(**settings)
    assert str(caught.value) == message
