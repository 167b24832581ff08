"""Masked autoencoding learns: a small ViT draws the three quarters of a photo that it does not see.

    python recipes/pretrain_small.py --data ../shared/data/train/coco_cc --out runs/mae

ViT-B needs days on a CPU; this one has 4 blocks and is trained by the same code (`segment-anything pretrain`). Its loss
on held-out photos is printed beside that of two guesses that know nothing of shapes: grey (every hidden patch has its
own mean and no colour: 1 by definition) and the mean colour of the visible patches. OUT gets look.png: what is seen,
the guess by colour, what the network draws, and the truth. Mean and contrast of hidden patches are the true ones there,
since the loss leaves them out.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.mae import MaskedAutoencoder, patches, take, visible_patches
from segment_anything.training.allocator import keep_freed_memory
from segment_anything.training.options import LoopOptions
from segment_anything.training.photos import Crops, find_photos, hold_out
from segment_anything.training.pretrain import pretrain
from segment_anything.training.pretrain_options import PretrainOptions

SIDE, PATCH, DECODER = 112, 16, (128, 2)
CELLS = SIDE // PATCH


def small_vit() -> Sam:
    """A model whose encoder has 4 blocks of 192 channels; the rest takes no part."""
    torch.manual_seed(0)
    return Sam(
        ImageEncoderViT(img_size=SIDE, patch_size=PATCH, embed_dim=192, depth=4, num_heads=3, out_chans=32),
        PromptEncoder(32, (CELLS, CELLS), (SIDE, SIDE), 8),
        MaskDecoder(transformer_dim=32, transformer=TwoWayTransformer(1, 32, 2, 32)),
    )


def as_image(values: torch.Tensor, sam: Sam) -> np.ndarray:
    """Patches (N, P P 3) of normalised pixels -> (SIDE, SIDE, 3) uint8."""
    grid = values.view(CELLS, CELLS, PATCH, PATCH, 3).transpose(1, 2).reshape(SIDE, SIDE, 3)
    pixels = grid * sam.pixel_std.view(3) + sam.pixel_mean.view(3)
    return np.asarray(pixels.round().clamp(0, 255).byte().numpy())


def look(model: MaskedAutoencoder, sam: Sam, crops: Crops) -> tuple[dict[str, float], np.ndarray]:
    """Losses by what draws the hidden patches, over all held-out photos, and a picture of six of them."""
    losses, rows = {"grey": 0.0, "colour of what is seen": 0.0, "network": 0.0}, []
    for index in range(len(crops)):
        pixels = sam.preprocess(crops.load(index, 0).image[None])
        visible = visible_patches(1, CELLS**2, model.mask_ratio, torch.Generator().manual_seed(index))
        with torch.inference_mode():
            tokens = model.encoder.patch_embed(pixels) + model.encoder.pos_embed
            latent = model.encode_visible(take(tokens.flatten(1, 2), visible))
            drawn = model.draw(latent, visible, (CELLS, CELLS))
        raw, truth = patches(pixels, PATCH), patches(pixels, PATCH, normalised=True)
        colour = take(truth, visible).unflatten(2, (-1, 3)).mean((1, 2)).repeat(1, PATCH**2)[:, None]
        hidden = torch.ones(1, CELLS**2).scatter_(1, visible, 0.0).bool()
        guesses = (torch.zeros_like(truth), colour.expand_as(truth), drawn)
        for name, guess in zip(losses, guesses, strict=True):
            losses[name] += float((guess - truth)[hidden].square().mean()) / len(crops)
        mean, deviation = raw.mean(dim=2, keepdim=True), (raw.var(dim=2, keepdim=True) + 1e-6).sqrt()
        shown = [torch.zeros_like(raw), *(guess * deviation + mean for guess in guesses[1:]), raw]
        parts = [as_image(torch.where(hidden[..., None], part, raw)[0], sam) for part in shown]
        rows.append(np.concatenate(parts, axis=1))
    return losses, np.concatenate(rows[:6])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/train/coco_cc"))
    parser.add_argument("--out", type=Path, default=Path("runs/mae"))
    parser.add_argument("--epochs", type=int, default=50)
    given = parser.parse_args()
    keep_freed_memory()
    sam, started, computed = small_vit(), time.perf_counter(), time.process_time()
    options = PretrainOptions(size=SIDE, decoder_dim=DECODER[0], decoder_depth=DECODER[1])
    loop = LoopOptions(epochs=given.epochs, lr=1e-3, batch_size=16, weight_decay=0.05, progress=False)
    result = pretrain(sam, given.data, given.out, options, loop)
    minutes, computing = (time.perf_counter() - started) / 60, (time.process_time() - computed) / 60
    model = MaskedAutoencoder(sam.image_encoder, *DECODER, decoder_heads=DECODER[0] // 32)
    model.load_state_dict(torch.load(given.out / "resume.pt", weights_only=True)["weights"])
    _, held_out = hold_out(find_photos(given.data), options.valid_fraction)
    losses, picture = look(model, sam, Crops(held_out, SIDE, 0, fixed=True))
    Image.fromarray(picture).resize((picture.shape[1] * 2, picture.shape[0] * 2)).save(given.out / "look.png")
    print("| hidden patches drawn by | loss on held-out photos |\n|---|---|")
    for name, loss in losses.items():
        print(f"| {name} | {loss:.3f} |")
    print(f"| network before training | {result.history[0]['valid_loss']:.3f} |")
    print(f"\n{minutes:.1f} minutes, {computing:.1f} of computing time")


if __name__ == "__main__":
    main()
