"""CTC beam searches of others, without a language model. Neither package is a dependency of the project for this."""

# B utterances, T' encoder frames, V vocabulary

import math
from importlib import metadata

import torch

from asr.tokenizer import BLANK_ID, EOS_ID
from benchmarks.harness import Contender, Skipped, imports_of
from benchmarks.searching import Batch, Tokens, Work

_FIRST_CHARACTER = 0xF0000  # a private plane of Unicode: 65,534 characters that mean nothing to anyone


def _columns(work: Work) -> list[int]:
    """The tokens that CTC can emit, blank first; the peers number them from 0."""
    return [BLANK_ID, *(token for token in range(work.tokenizer.vocab_size) if token not in (BLANK_ID, EOS_ID))]


def build_pyctcdecode(work: Work, *, pruned: bool) -> Contender:
    """pyctcdecode's beam search over hypotheses that are written with one private character a token.

    With the true characters it would join runs of spaces, and transcripts that differ in them, as it works on words.

    Args:
        work: What to do.
        pruned: Whether tokens and beams are left out as its defaults have it, or all are tried.

    Raises:
        Skipped: If it is not installed.
    """
    with imports_of("pyctcdecode", "pyctcdecode", "pygtrie"):
        import pyctcdecode
        from pyctcdecode.alphabet import Alphabet
    columns = _columns(work)
    characters = [chr(_FIRST_CHARACTER + token) for token in columns[1:]]
    decoder = pyctcdecode.BeamSearchDecoderCTC(Alphabet(["", *characters], is_bpe=False))
    pruning = {} if pruned else {"beam_prune_logp": -math.inf, "token_min_logp": -math.inf}

    def search(batch: Batch) -> list[list[Tokens]]:
        found = []
        for one in batch.alone():
            log_probs = one.log_probs[0, :, columns].cpu().numpy()  # (T', V - 1)
            beams = decoder.decode_beams(log_probs, beam_width=work.beam_size, **pruning)
            found.append([tuple(ord(character) - _FIRST_CHARACTER for character in beam[0]) for beam in beams])
        return found

    name = "pyctcdecode, its pruning" if pruned else "pyctcdecode, no pruning"
    return Contender(name, metadata.version("pyctcdecode"), search)


def build_torchaudio(work: Work, *, pruned: bool) -> Contender:
    """torchaudio's CTC beam search on the GPU, in batches.

    Args:
        work: What to do.
        pruned: Whether frames that are blank with a probability above 0.95 are left out, its default, or none.

    Raises:
        Skipped: If the frames are not on a GPU.
    """
    name = "torchaudio CUDA, its pruning" if pruned else "torchaudio CUDA, no pruning"
    if work.device.type != "cuda":
        raise Skipped(f"{name}: it needs a GPU, and this runs on {work.device.type}; run with device=cuda")
    from torchaudio.models.decoder import cuda_ctc_decoder

    columns = _columns(work)
    skipping = {} if pruned else {"blank_skip_threshold": 1.0}
    # It takes no beam wider than the vocabulary.
    width = min(work.beam_size, len(columns))
    labels = [str(token) for token in columns]
    decoder = cuda_ctc_decoder(labels, nbest=width, beam_size=width, **skipping)

    def search(batch: Batch) -> list[list[Tokens]]:
        log_probs = batch.log_probs[:, :, columns].float().contiguous()
        found = decoder(log_probs, batch.lengths.to(torch.int32))
        return [[tuple(columns[label] for label in each.tokens) for each in beams] for beams in found]

    return Contender(name, metadata.version("torchaudio"), search)
