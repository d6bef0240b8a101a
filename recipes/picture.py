"""Draws what a model hears and where it looks: python recipes/picture.py model=runs/an4 audio=speech.flac"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from launching import launch
from schema import PictureRecipe

from asr import audio, checkpoint
from asr.decoding.hypothesis import align
from asr.decoding.search import encode
from asr.nn.inspection import attention_maps
from asr.recognition import SearchBuilder
from asr.tokenizer import BLANK_ID, EOS_ID


@torch.no_grad()
def run(recipe: PictureRecipe) -> None:
    """Draws features, CTC probabilities with the aligned tokens, and the decoder's attention, on one axis of time."""
    loaded = checkpoint.load(recipe.model)
    model, tokenizer = loaded.model, loaded.tokenizer
    waveform = audio.load(recipe.audio, sample_rate=loaded.sample_rate)
    length = torch.tensor([len(waveform)])
    found = SearchBuilder(loaded).build(recipe.decoding)(encode(model, waveform[None], length))[0]
    tokens = found.best.tokens
    features, lengths = model.features(waveform[None], length)
    seconds = len(waveform) / loaded.sample_rate
    maps = attention_maps(model, features, lengths, torch.tensor([[EOS_ID, *tokens]]))
    weights = maps.decoder[-1][0].mean(0) if maps.decoder else None  # (U, T')

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    rows = 3 if weights is not None else 2
    figure, axes = plt.subplots(rows, 1, figsize=(9, 2.1 * rows), sharex=True, constrained_layout=True)
    axes[0].imshow(features[0].T, origin="lower", aspect="auto", extent=(0, seconds, 0, features.shape[2]), vmin=-2.5,
                   vmax=2.5, cmap="magma")  # fmt: skip
    axes[0].set_ylabel("mel bin")
    axes[0].set_title(f"“{tokenizer.decode(tokens)}”", loc="left")

    probabilities = found.log_probs.exp()
    times = (torch.arange(len(probabilities)) + 0.5) * loaded.frame_s
    axes[1].plot(times, probabilities[:, BLANK_ID], color="0.75", linewidth=1, label="blank")
    for token, span in zip(tokens, align(found.log_probs, tokens), strict=True):
        middle = (span.start + span.end) / 2 * loaded.frame_s
        axes[1].plot(times, probabilities[:, token], linewidth=1)
        axes[1].text(middle, 1.03, tokenizer.tokens[token], ha="center", fontsize=8)
    axes[1].set_ylabel("CTC probability")
    axes[1].set_ylim(0, 1.15)
    axes[1].legend(loc="lower right", frameon=False)

    if weights is not None:
        axes[2].imshow(weights, aspect="auto", extent=(0, weights.shape[1] * loaded.frame_s, len(weights), 0),
                       cmap="magma")  # fmt: skip
        names = [*(tokenizer.tokens[token] for token in tokens), tokenizer.tokens[EOS_ID]]
        axes[2].set_yticks([row + 0.5 for row in range(len(names))], names, fontsize=6)
        axes[2].set_ylabel("decoder attention")
    axes[-1].set_xlabel("seconds")
    axes[-1].set_xlim(0, seconds)
    Path(recipe.output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(recipe.output, dpi=recipe.dpi)
    print(recipe.output)


if __name__ == "__main__":
    launch("picture", run)
