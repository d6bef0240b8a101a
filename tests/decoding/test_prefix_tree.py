"""Trees of sequences that begin alike: written once, and a Transformer says of each what it says of it alone."""

import math

import pytest
import tiny
import torch

from asr.decoding.prefix_tree import PrefixTrees, grow_trees, list_log_probs
from asr.nn.decoder import TransformerDecoder
from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.tokenizer import EOS_ID

VOCAB_SIZE = 6
CPU = torch.device("cpu")
LISTS = [[[2, 3, 4], [2, 3], [], [2, 3, 3, 4], [2, 3]], [[5]], [[3, 3], [4, 2, 5, 2, 2, 2, 2], [4, 2, 4]]]


def test_what_is_in_common_is_written_once() -> None:
    trees = grow_trees(LISTS[:1])
    assert trees.tokens.tolist() == [[EOS_ID, 2, 3, 4, 3, 4]]
    assert trees.positions.tolist() == [[0, 1, 2, 3, 3, 4]]
    sees = [set(row.nonzero()[:, 0].tolist()) for row in trees.mask[0, 0]]
    assert sees == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 4}, {0, 1, 2, 4, 5}]
    assert trees.sizes == [[4, 3, 1, 5, 3]]


def test_padding_sees_itself_alone() -> None:
    trees = grow_trees(LISTS)
    size = 2  # the start and 5
    assert torch.equal(trees.mask[1, 0, size:], torch.eye(trees.tokens.shape[1], dtype=torch.bool)[size:])
    assert not trees.mask[1, 0, :size, size:].any()


@torch.no_grad()
def test_a_language_model_says_of_each_what_it_says_of_it_alone() -> None:
    torch.manual_seed(0)
    config = LanguageModelConfig(num_layers=2, width=tiny.WIDTH, num_heads=2, feedforward_width=32)
    model = tiny.randomized(LanguageModel(config, vocab_size=VOCAB_SIZE))
    trees = grow_trees(LISTS)
    found = trees.log_probs(model(trees.tokens, positions=trees.positions, mask=trees.mask))
    for own, scores in zip(LISTS, found, strict=True):
        for sequence, score in zip(own, scores, strict=True):
            log_probs = model(torch.tensor([[EOS_ID, *sequence]]))[0].log_softmax(dim=-1)
            expected = sum(float(log_probs[place, token]) for place, token in enumerate((*sequence, EOS_ID)))
            assert score == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_a_decoder_reads_tokens_from_left_to_right_unless_told_otherwise() -> None:
    torch.manual_seed(0)
    decoder = tiny.randomized(TransformerDecoder(tiny.make_decoder_config(), width=tiny.WIDTH, vocab_size=VOCAB_SIZE))
    frames, lengths, tokens = torch.randn(2, 5, tiny.WIDTH), torch.tensor([5, 3]), torch.randint(2, 6, (2, 4))
    causal = torch.ones(4, 4, dtype=torch.bool).tril().expand(2, 1, 4, 4)
    positions = torch.arange(4).expand(2, 4)
    found = decoder(tokens, frames, lengths, positions=positions, mask=causal)
    torch.testing.assert_close(found, decoder(tokens, frames, lengths))


def made_up(sequence: list[int]) -> float:
    """What a model says that knows nothing but how many tokens came before."""
    return sum(step(position, token) for position, token in enumerate((*sequence, EOS_ID)))


def step(position: int, token: int) -> float:
    logits = torch.arange(VOCAB_SIZE, dtype=torch.float64) * 0.1 * (1 + position)
    return float(logits.log_softmax(dim=0)[token])


@pytest.mark.parametrize("max_nodes", [1, 4, 7, 1000])
@pytest.mark.parametrize("max_numbers", [1, 90, 10**9])
def test_lists_are_scored_in_parts_of_any_size(max_nodes: int, max_numbers: int) -> None:
    sizes = []

    def logits(trees: PrefixTrees, rows: list[int]) -> torch.Tensor:
        sizes.append(trees.tokens.shape)
        assert all(len(own) <= len(LISTS[row]) for row, own in zip(rows, trees.sizes, strict=True))
        return trees.positions[:, :, None].add(1) * 0.1 * torch.arange(VOCAB_SIZE)

    found = list_log_probs(
        LISTS, logits, vocab_size=VOCAB_SIZE, device=CPU, max_nodes=max_nodes, max_numbers=max_numbers
    )
    for own, scores in zip(LISTS, found, strict=True):
        assert scores == pytest.approx([made_up(sequence) for sequence in own], abs=1e-5)
    assert all(nodes <= max(max_nodes, 8) for _, nodes in sizes)  # the longest sequence has seven tokens
    assert all(trees == 1 or trees * nodes * max(nodes, VOCAB_SIZE) <= max_numbers for trees, nodes in sizes)


def test_empty_lists_and_empty_sequences_are_fine() -> None:
    def logits(trees: PrefixTrees, rows: list[int]) -> torch.Tensor:
        return torch.zeros(*trees.tokens.shape, VOCAB_SIZE)

    assert list_log_probs([], logits, vocab_size=VOCAB_SIZE, device=CPU) == []
    assert list_log_probs([[]], logits, vocab_size=VOCAB_SIZE, device=CPU) == [[]]
    assert list_log_probs([[[]], []], logits, vocab_size=VOCAB_SIZE, device=CPU) == [
        [pytest.approx(-math.log(VOCAB_SIZE))],
        [],
    ]
