"""MMI against its definition: all paths of all sequences of phones, written out."""

import itertools
import math

import pytest
import torch
from alignments import transcript_probabilities
from torch import Tensor

from asr.lattice_free import PhoneTrigrams, log_partition
from asr.losses import ctc_loss

NUM_PHONES = 3
SENTENCES = [[1, 2, 3, 3], [2, 2, 1], [3, 1], [1], []]
FRAME_LENGTHS = [4, 2, 0, 3]


def random_log_probs(*shape: int, seed: int = 0, sharpness: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, 1 + NUM_PHONES, generator=generator) * sharpness).log_softmax(dim=-1)


def sequence_probability(trigrams: PhoneTrigrams, sequence: tuple[int, ...]) -> float:
    table = trigrams.probabilities.double()
    padded = (0, 0, *sequence, 0)
    return math.prod(float(table[padded[n : n + 3]]) for n in range(len(sequence) + 1))


# Trigrams


def test_the_probabilities_of_what_may_follow_sum_to_one_and_none_is_zero() -> None:
    table = PhoneTrigrams(SENTENCES, num_phones=NUM_PHONES).probabilities
    torch.testing.assert_close(table.sum(dim=-1), torch.ones(4, 4))
    assert float(table.min()) > 0


def test_trigrams_are_interpolated_with_bigrams_and_unigrams() -> None:
    table = PhoneTrigrams([[1, 2], [1, 2], [1, 1]], num_phones=2).probabilities.double()
    # 9 symbols are predicted: 1 four times, 2 twice, the end three times; all three kinds were seen.
    unigrams = [(count + 3 / 3) / (9 + 3) for count in (3, 4, 2)]
    # Behind 1: 2 twice, 1 once, the end once; three kinds.
    bigrams = [(count + 3 * below) / (4 + 3) for count, below in zip((1, 1, 2), unigrams, strict=True)]
    # Behind the start and 1: 2 twice, 1 once; two kinds.
    trigrams = [(count + 2 * below) / (3 + 2) for count, below in zip((0, 1, 2), bigrams, strict=True)]
    torch.testing.assert_close(table[0, 1], torch.tensor(trigrams, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(table[2, 1], torch.tensor(bigrams, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_probability_of_a_sequence_has_its_end_and_nothing_beyond_its_length() -> None:
    trigrams = PhoneTrigrams(SENTENCES, num_phones=NUM_PHONES)
    phones, lengths = torch.tensor([[1, 2, 3], [2, 1, 1], [3, 3, 3]]), torch.tensor([3, 1, 0])
    expected = [math.log(sequence_probability(trigrams, sequence)) for sequence in ((1, 2, 3), (2,), ())]
    assert trigrams.log_prob(phones, lengths).tolist() == pytest.approx(expected, rel=1e-5)


def test_all_sequences_together_are_certain() -> None:
    trigrams = PhoneTrigrams([[1, 2], [2]], num_phones=2)
    short = (each for length in range(12) for each in itertools.product((1, 2), repeat=length))
    assert sum(sequence_probability(trigrams, each) for each in short) == pytest.approx(1, abs=0.02)


def test_without_sentences_there_are_no_trigrams() -> None:
    with pytest.raises(ValueError, match="no sentences to learn trigrams of phones from"):
        PhoneTrigrams([], num_phones=2)


# The sum over all sequences


def loss_and_gradient(log_probs: Tensor, frame_lengths: list[int], trigrams: PhoneTrigrams) -> tuple[Tensor, Tensor]:
    partition = log_partition(log_probs, torch.tensor(frame_lengths), trigrams)
    (gradient,) = torch.autograd.grad(partition.sum(), log_probs)
    return partition.detach(), gradient


def brute_force(log_probs: Tensor, length: int, trigrams: PhoneTrigrams) -> float:
    if not length:
        return math.log(sequence_probability(trigrams, ()))
    found = transcript_probabilities(log_probs[:length])
    return math.log(sum(own * sequence_probability(trigrams, sequence) for sequence, own in found.items()))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_partition_is_the_sum_over_all_paths_of_all_sequences(seed: int) -> None:
    trigrams = PhoneTrigrams(SENTENCES, num_phones=NUM_PHONES)
    log_probs = random_log_probs(4, 4, seed=seed)
    expected = [brute_force(own, length, trigrams) for own, length in zip(log_probs, FRAME_LENGTHS, strict=True)]
    found = log_partition(log_probs, torch.tensor(FRAME_LENGTHS), trigrams)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_its_gradient_is_that_of_finite_differences() -> None:
    trigrams = PhoneTrigrams(SENTENCES, num_phones=NUM_PHONES).double()
    log_probs = random_log_probs(4, 4).double().requires_grad_()
    lengths, weights = torch.tensor(FRAME_LENGTHS), torch.tensor([1.0, 2.0, 1.0, -0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda each: log_partition(each, lengths, trigrams) * weights, log_probs)


def test_a_padded_batch_gives_what_batches_of_one_give() -> None:
    trigrams = PhoneTrigrams(SENTENCES, num_phones=NUM_PHONES)
    log_probs = random_log_probs(3, 40).requires_grad_()
    lengths = [40, 17, 3]
    together = log_partition(log_probs, torch.tensor(lengths), trigrams)
    (gradient,) = torch.autograd.grad(together.sum(), log_probs)
    for row, length in enumerate(lengths):
        own = log_probs[row : row + 1, :length].detach().requires_grad_()
        alone = log_partition(own, torch.tensor([length]), trigrams)
        (expected,) = torch.autograd.grad(alone.sum(), own)
        torch.testing.assert_close(together[row : row + 1], alone)
        torch.testing.assert_close(gradient[row, :length], expected[0])
        assert not gradient[row, length:].any()


def test_long_and_certain_frames_do_not_underflow() -> None:
    trigrams = PhoneTrigrams(SENTENCES, num_phones=NUM_PHONES)
    log_probs = random_log_probs(1, 3000, sharpness=30).requires_grad_()
    found, gradient = loss_and_gradient(log_probs, [3000], trigrams)
    assert found.item() < -1000
    expected, exact = loss_and_gradient(log_probs.detach().double().requires_grad_(), [3000], trigrams.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact, rtol=0, atol=1e-4)


def test_under_autocast_it_is_the_same() -> None:
    trigrams = PhoneTrigrams(SENTENCES, num_phones=NUM_PHONES)
    log_probs = random_log_probs(4, 4).requires_grad_()
    expected = loss_and_gradient(log_probs, FRAME_LENGTHS, trigrams)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_and_gradient(log_probs, FRAME_LENGTHS, trigrams)
    assert all(map(torch.equal, found, expected))


def test_frames_beyond_a_length_are_not_looked_at() -> None:
    trigrams = PhoneTrigrams(SENTENCES, num_phones=NUM_PHONES)
    log_probs = random_log_probs(4, 4).requires_grad_()
    expected = loss_and_gradient(log_probs, FRAME_LENGTHS, trigrams)
    broken = log_probs.detach().clone()
    for row, length in enumerate(FRAME_LENGTHS):
        broken[row, length:] = math.nan
    assert all(map(torch.equal, loss_and_gradient(broken.requires_grad_(), FRAME_LENGTHS, trigrams), expected))


def test_what_frames_may_say_sums_to_one() -> None:
    """With the CTC loss and the trigrams of what was said, the partition makes a distribution over sequences."""
    trigrams = PhoneTrigrams(SENTENCES, num_phones=NUM_PHONES)
    log_probs = random_log_probs(1, 3)
    sequences = [each for length in range(4) for each in itertools.product((1, 2, 3), repeat=length)]
    phones = torch.tensor([[*each, *[0] * (3 - len(each))] for each in sequences])
    lengths = torch.tensor([len(each) for each in sequences])
    frames = torch.full((len(sequences),), 3)
    repeated = log_probs.expand(len(sequences), -1, -1)
    losses = ctc_loss(repeated, frames, phones, lengths) - trigrams.log_prob(phones, lengths)
    posteriors = (-losses - log_partition(repeated, frames, trigrams)).exp()
    assert float(posteriors.sum()) == pytest.approx(1, rel=1e-5)
