"""ESPnet's decoder, CTC and batched beam search with this project's weights. ESPnet is no dependency of the project."""

# D width, V vocabulary, U tokens

from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from asr.nn.attention import position_code
from asr.nn.decoder import TransformerDecoder
from asr.nn.model import Recognizer
from asr.tokenizer import BLANK_ID, EOS_ID
from benchmarks.harness import Contender, imports_of, installation
from benchmarks.searching import TOLERANCE, Batch, Tokens, Work

_PACKAGES = ("espnet==202511", "typeguard")
_PRE_BEAM = "full"  # as ESPnet's own inference sets it: CTC scores the decoder's best 1.5 · beam tokens alone


def build_espnet(work: Work, *, ctc_weight: float) -> Contender:
    """`BatchBeamSearch` with the decoder and `CTCPrefixScorer`, all other settings at their defaults.

    Its batch is the beam of one utterance.

    Raises:
        Skipped: If ESPnet is not installed.
        ValueError: If its copy of the model answers otherwise than the model.
    """
    with imports_of("ESPnet", *_PACKAGES):
        from espnet.nets.batch_beam_search import BatchBeamSearch
        from espnet.nets.scorers.ctc import CTCPrefixScorer
    max_tokens = max(batch.frames.shape[1] for batch in work.batches) + 1
    decoder, ctc = copy_to_espnet(work.model, max_tokens=max_tokens)
    check_agreement(work.model, decoder, ctc, next(work.batches[0].alone()).frames)
    search = BatchBeamSearch(
        scorers={"decoder": decoder, "ctc": CTCPrefixScorer(ctc, eos=EOS_ID)},
        weights={"decoder": 1 - ctc_weight, "ctc": ctc_weight},
        beam_size=work.beam_size,
        vocab_size=work.tokenizer.vocab_size,
        sos=EOS_ID,
        eos=EOS_ID,
        pre_beam_score_key=_PRE_BEAM,
    ).eval()

    def search_batch(batch: Batch) -> list[list[Tokens]]:
        found = (search(one.frames[0], maxlenratio=0.0, minlenratio=0.0) for one in batch.alone())
        return [_tokens(hypotheses[: work.beam_size]) for hypotheses in found]

    return Contender("ESPnet", metadata.version("espnet"), search_batch)


def copy_to_espnet(model: Recognizer, *, max_tokens: int) -> tuple[nn.Module, nn.Module]:
    """ESPnet's `TransformerDecoder` and `CTC` with the weights of a recogniser, on its device, in eval mode.

    Three things are set that ESPnet has otherwise: SiLU in place of ReLU, the term under the root of its layer norms,
    and the order of sines and cosines in its table of positions.

    Args:
        model: A recogniser with a decoder.
        max_tokens: Rows of the table of positions.
    """
    from espnet2.asr.ctc import CTC
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder as EspnetDecoder

    ours = model.decoder
    assert ours is not None
    vocab_size, width = ours.output.weight.shape
    layers = ours.layers()
    decoder = EspnetDecoder(
        vocab_size=vocab_size,
        encoder_output_size=width,
        attention_heads=layers[0].self_attention.num_heads,
        linear_units=layers[0].feedforward[1].out_features,
        num_blocks=len(layers),
    )
    decoder.load_state_dict(_decoder_weights(ours))
    for layer in decoder.decoders:
        layer.feed_forward.activation = nn.SiLU()
    for norm in decoder.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = ours.norm.eps
    device = ours.output.weight.device
    cosines, sines = position_code(torch.arange(max_tokens, device=device), width)
    decoder.embed[1].pe = torch.cat([sines, cosines], dim=-1)[None]  # (1, U, D)
    ctc = CTC(odim=vocab_size, encoder_output_size=width)
    ctc.ctc_lo.load_state_dict(model.ctc.state_dict())
    return decoder.to(device).eval(), ctc.to(device).eval()


def _decoder_weights(decoder: TransformerDecoder) -> dict[str, Tensor]:
    """This project's decoder under ESPnet's names."""
    modules: dict[str, nn.Module] = {
        "embed.0": decoder.embedding,
        "after_norm": decoder.norm,
        "output_layer": decoder.output,
    }
    weights: dict[str, Tensor] = {}
    for number, block in enumerate(decoder.layers()):
        name = f"decoders.{number}"
        modules |= {f"{name}.norm1": block.self_norm, f"{name}.norm2": block.cross_norm}
        modules |= {
            f"{name}.norm3": block.feedforward[0],
            f"{name}.feed_forward.w_1": block.feedforward[1],
            f"{name}.feed_forward.w_2": block.feedforward[4],
        }
        for kind, attention in (("self_attn", block.self_attention), ("src_attn", block.cross_attention)):
            modules |= {f"{name}.{kind}.linear_q": attention.query, f"{name}.{kind}.linear_out": attention.output}
            for part, tensor in attention.key_value.state_dict().items():
                keys, values = tensor.chunk(2)
                weights |= {f"{name}.{kind}.linear_k.{part}": keys, f"{name}.{kind}.linear_v.{part}": values}
    for name, module in modules.items():
        weights |= {f"{name}.{part}": tensor for part, tensor in module.state_dict().items()}
    return weights


def check_agreement(model: Recognizer, decoder: nn.Module, ctc: Any, frames: Tensor) -> None:
    """Makes sure that both score alike, before anything is timed.

    Args:
        model: A recogniser with a decoder.
        decoder: ESPnet's copy of its decoder.
        ctc: ESPnet's copy of its CTC head.
        frames: Of one utterance, (1, T', D).

    Raises:
        ValueError: If a log-probability differs by more than 1e-4.
    """
    assert model.decoder is not None
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(BLANK_ID + 1, model.ctc.out_features, (1, min(40, frames.shape[1])), generator=generator)
    tokens[:, 0] = EOS_ID
    tokens = tokens.to(frames.device)
    num_frames = torch.tensor([frames.shape[1]], device=frames.device)
    num_tokens = torch.tensor([tokens.shape[1]], device=frames.device)
    pairs = {
        "decoder": (model.decoder(tokens, frames, num_frames), decoder(frames, num_frames, tokens, num_tokens)[0]),
        "CTC": (model.ctc_log_probs(frames), ctc.log_softmax(frames)),
    }
    for name, (own, copied) in pairs.items():
        gap = float((own.log_softmax(dim=-1) - copied.log_softmax(dim=-1)).abs().max())
        if not gap <= TOLERANCE:
            raise ValueError(
                f"ESPnet's copy of the {name} differs by {gap:.2g} in a log-probability, more than {TOLERANCE}; "
                f"these versions cannot be compared: {installation(*_PACKAGES)}"
            )


def _tokens(hypotheses: list[Any]) -> list[Tokens]:
    """Transcripts without the start and end of sentence."""
    return [tuple(token for token in each.yseq.tolist() if token != EOS_ID) for each in hypotheses]
