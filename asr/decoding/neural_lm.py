"""The Transformer language model in recognition: token by token in a search, or whole sentences in a second pass."""

# B utterances, N hypotheses of an utterance, R = B·N rows, V vocabulary; K sequences of a batch, U tokens

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.decoding.prefix_tree import PrefixTrees, list_log_probs
from asr.nn.lm import LanguageModel, LanguageModelState
from asr.tokenizer import EOS_ID, Tokenizer

_PADDING = -100  # what cross_entropy skips
_MAX_LOGITS = 2**26  # that are held at a time: 256 MB


@dataclass(slots=True)
class NeuralLmState:
    """State of `NeuralLmScorer`: the language model's, and the last token of each row, (R,)."""

    lm: LanguageModelState
    last_tokens: Tensor


class NeuralLmScorer:
    """The language model's log-probability of the next token, for a search over tokens; see `Scorer`.

    Args:
        model: In eval mode; its tokens are the recogniser's (`LoadedLanguageModel.check_tokens`).

    Raises:
        ValueError: If the model is in training mode.
    """

    can_stay = False
    headroom = 0.0

    def __init__(self, model: LanguageModel) -> None:
        _refuse_training(model)
        self.model = model

    def start(self, num_utterances: int, num_hypotheses: int) -> NeuralLmState:
        """The state of B·N rows that hold no token yet: the end of the sentence before begins this one."""
        device = self.model.output_bias.device
        return NeuralLmState(
            LanguageModelState(), torch.full((num_utterances * num_hypotheses,), EOS_ID, device=device)
        )

    def score(self, state: NeuralLmState, tokens: Tensor | None = None) -> tuple[Tensor, NeuralLmState]:
        """Reads the last tokens, (R,), and returns the log-probabilities of the next, (R, V)."""
        log_probs, lm = self.model.step(state.last_tokens, state.lm)
        return log_probs, NeuralLmState(lm, state.last_tokens)

    def advance(self, state: NeuralLmState, rows: Tensor, tokens: Tensor) -> NeuralLmState:
        """Reorders the caches; see `Scorer.advance`."""
        return NeuralLmState(state.lm.select(rows), tokens)


class SentenceScorer:
    """The language model's log-probability of whole sentences, whatever its tokens are.

    Args:
        model: In eval mode.
        tokenizer: That of the model.
        spelling: The recogniser's tokenizer.

    Raises:
        ValueError: If the model is in training mode, or lacks a character that the recogniser writes.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, spelling: Tokenizer) -> None:
        _refuse_training(model)
        if missing := sorted(spelling.characters - tokenizer.characters):
            raise ValueError(
                f"the language model has no token for {missing[0]!r}, which the recogniser writes; train one on texts "
                "that have it"
            )
        self.model = model
        self._tokenizer, self._spelling = tokenizer, spelling
        self._is_same = tokenizer.tokens == spelling.tokens

    @torch.inference_mode()
    def __call__(self, lists: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """Natural logarithms of lists of sentences in the recogniser's tokens, ends of sentence included.

        What the sentences of a list begin with in common is read once.
        """
        if not self._is_same:
            lists = [[self._tokenizer.encode(self._spelling.decode(sequence)) for sequence in own] for own in lists]

        def logits(trees: PrefixTrees, _: list[int]) -> Tensor:
            return self.model(trees.tokens, positions=trees.positions, mask=trees.mask)

        bias = self.model.output_bias
        return list_log_probs(lists, logits, vocab_size=len(bias), device=bias.device)


@torch.inference_mode()
def sequence_log_probs(
    lm: LanguageModel, sequences: Sequence[Sequence[int]], *, max_batch_tokens: int = 16_384
) -> Tensor:
    """The log-probability of each sequence of tokens as a whole sentence.

    Args:
        lm: In eval mode.
        sequences: Token ids, without start and end; may be empty sentences.
        max_batch_tokens: Most tokens that are computed at once, padding included, fewer with a large vocabulary; a
            longer sequence goes alone.

    Returns:
        Natural logarithms (K,) float64 on the model's device, the end of sentence included, in the order given.

    Raises:
        ValueError: If the model is in training mode.
    """
    _refuse_training(lm)
    device = lm.output_bias.device
    found = torch.zeros(len(sequences), dtype=torch.float64, device=device)
    most = min(max_batch_tokens, _MAX_LOGITS // len(lm.output_bias))
    for places in _batches([len(sequence) + 1 for sequence in sequences], most):
        inputs, targets = _padded([sequences[place] for place in places])
        logits = lm(inputs.to(device)).float()  # (K, U, V)
        targets = targets.to(device)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_PADDING, reduction="none")
        found[places] = -losses.view_as(targets).double().sum(dim=1)  # (K,)
    return found


def _refuse_training(model: LanguageModel) -> None:
    if model.training:
        raise ValueError("the language model is in training mode; call eval() on it before it scores")


def _batches(lengths: list[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Places of sequences of like length, the longest first, so that want of memory shows at once."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _padded(sequences: list[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """What the model reads, from the start token on, and what follows, to the end of sentence, (K, U) each."""
    inputs = [torch.tensor([EOS_ID, *sequence]) for sequence in sequences]
    targets = [torch.tensor([*sequence, EOS_ID]) for sequence in sequences]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(inputs, batch_first=True), pad(targets, batch_first=True, padding_value=_PADDING)
