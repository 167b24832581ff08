"""Toy run of the paper's text recipe: a phrase selects the right object, in minutes on one CPU core.

    python recipes/toy_text.py --out runs/toy_text

Trains a tiny CLIP on synthetic pictures of coloured shapes, then a tiny SAM whose first prompt is the CLIP image
embedding of each object's crop (Segment Anything, https://arxiv.org/abs/2304.02643, appendix D.5), and at last prompts
it with CLIP text embeddings. Eight of the 72 combinations of colour and shape are never seen in either training; they
count. The goal: hit rate >= 0.9 on those (the mask overlaps the named object by more than one half, among three or four
objects of which some share its colour or its shape). Measured: see docs/labels.md. A run that was stopped goes on with
the same command.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F

from segment_anything.datasets import SegmentationSample
from segment_anything.masks import mask_iou, mask_to_box
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.text import apply_style, square_crop
from segment_anything.text.prompting import TextPrompter
from segment_anything.training.loop import Loop
from segment_anything.training.options import LoopOptions
from segment_anything.training.text import TextOptions, TextTask

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (150, 60, 180),
    "white": (240, 240, 240),
    "orange": (245, 140, 30),
    "cyan": (60, 215, 225),
    "pink": (250, 135, 185),
    "black": (15, 15, 15),
    "brown": (125, 70, 25),
    "navy": (25, 30, 120),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
HELD_OUT = (
    ("red", "triangle"),
    ("green", "ring"),
    ("blue", "circle"),
    ("yellow", "cross"),
    ("purple", "square"),
    ("white", "bar"),
    ("red", "bar"),
    ("blue", "cross"),
)
ALL = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN = tuple(combination for combination in ALL if combination not in HELD_OUT)
Draw = Callable[[tuple[str, str], np.random.Generator], list[tuple[str, str]]]
SIDE = 64  # pixels of a picture
CELL = 4  # pixels of an embedding cell
CROP = 32  # pixels that the tiny CLIP sees


@dataclass(frozen=True)
class Options:
    """Length and place of the run."""

    out: str = "runs/toy_text"
    """Folder for the weights and the report."""
    clip_steps: int = 1500
    """Steps of the tiny CLIP."""
    pair_steps: int = 400
    """Steps of the tiny SAM on pictures of two objects that share neither colour nor shape."""
    sam_steps: int = 7500
    """Steps of the tiny SAM on pictures of three or four, where colour and shape must both be heeded."""
    rounds: int = 1
    """Rounds of prompts in each step of the SAM: text alone, and from 2 on points beside it, as in the paper."""
    clip: str = ""
    """Weights of a tiny CLIP of an earlier run (`clip.pt`), to train the SAM alone."""
    seed: int = 0
    """Of weights, pictures and clicks."""
    threads: int = 1
    """Threads."""


@functools.cache
def draw_shape(shape: str, size: int, angle: int) -> np.ndarray:
    """(S, S) bool: one shape, turned by degrees, drawn four times larger and shrunk."""
    big = size * 4
    canvas = Image.new("L", (big, big))
    draw, m = ImageDraw.Draw(canvas), big * 0.08
    low, high, mid, third = m, big - m, big / 2, big / 3
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=255)
    elif shape == "square":
        draw.rectangle((big * 0.18, big * 0.18, big * 0.82, big * 0.82), fill=255)
    elif shape == "triangle":
        draw.polygon([(mid, low), (high, high - m), (low, high - m)], fill=255)
    elif shape == "cross":
        draw.rectangle((third * 1.1, low, big - third * 1.1, high), fill=255)
        draw.rectangle((low, third * 1.1, high, big - third * 1.1), fill=255)
    elif shape == "ring":
        draw.ellipse((low, low, high, high), fill=255)
        draw.ellipse((big * 0.32, big * 0.32, big * 0.68, big * 0.68), fill=0)
    else:
        draw.rectangle((low, big * 0.38, high, big * 0.62), fill=255)
    turned = canvas.rotate(angle).resize((size, size), Image.Resampling.BOX)
    return np.asarray(turned) > 127


def picture(combinations, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One picture with an object of each combination, and the (N, S, S) bool masks; objects never overlap."""
    corners = None
    while corners is None:
        sizes = rng.integers(18, 28, len(combinations))
        corners = _places(sizes, rng)
    image = (rng.integers(60, 120, 3) + rng.normal(0, 12, (SIDE, SIDE, 3))).astype(np.float32)
    masks = np.zeros((len(combinations), SIDE, SIDE), bool)
    for mask, (colour, shape), size, (x, y) in zip(masks, combinations, sizes, corners, strict=True):
        mask[y : y + size, x : x + size] = draw_shape(shape, int(size), 10 * int(rng.integers(36)))
        shade = np.array(COLOURS[colour]) * rng.uniform(0.85, 1.1)
        image[mask] = shade + rng.normal(0, 8, (int(mask.sum()), 3))
    return image.clip(0, 255).astype(np.uint8), masks


def _places(sizes: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]] | None:
    """Top left corners of squares of these sizes that do not overlap, or None if they did not fit."""
    placed: list[tuple[int, int]] = []
    for number, size in enumerate(sizes):
        for _ in range(50):
            x, y = (int(v) for v in rng.integers(0, SIDE - size, 2))
            apart = [
                x + size <= left or left + other <= x or y + size <= top or top + other <= y
                for (left, top), other in zip(placed, sizes[:number], strict=True)
            ]
            if all(apart):
                placed.append((x, y))
                break
        else:
            return None
    return placed


def draw_combinations(target, rng: np.random.Generator, among=SEEN) -> list[tuple[str, str]]:
    """The target, one object of its colour, one of its shape, and perhaps another; all different, target first."""
    same_colour = [c for c in among if c[0] == target[0] and c != target]
    same_shape = [c for c in among if c[1] == target[1] and c != target]
    others = [c for c in among if c[0] != target[0] and c[1] != target[1]]
    chosen = [target, same_colour[rng.integers(len(same_colour))], same_shape[rng.integers(len(same_shape))]]
    return chosen + ([others[rng.integers(len(others))]] if rng.random() < 0.5 else [])


class TinyClip(nn.Module):
    """Picture and phrase encoders with one space; the interface of `text.TextImageEncoder`."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.words = {word: index for index, word in enumerate((*COLOURS, *SHAPES))}
        self.word = nn.Embedding(len(self.words), width)
        self.vision = nn.Sequential(
            *(layer for a, b in ((3, 32), (32, 64), (64, 96)) for layer in _conv(a, b)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(96, width),
        )

    logit_scale = 8.0
    """Fixed and low: a learned one grows, and then pictures need not come near their captions (cosine 0.7, not 0.9)."""

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """(N, D): the sum of the vectors of the words it knows."""
        known = [[self.words[word] for word in text.strip(".").split() if word in self.words] for text in texts]
        return torch.stack([self.word.weight[indices].sum(dim=0) for indices in known])

    def encode_image(self, images: list[np.ndarray]) -> torch.Tensor:
        """(N, D) of pictures of any size."""
        resized = [np.array(Image.fromarray(i).resize((CROP, CROP), Image.Resampling.BILINEAR)) for i in images]
        return self.vision(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1)


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.GELU(), nn.AvgPool2d(2)]


def random_crop(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The crop of one object as in the SAM's training: expanded by 1 to 2, half of them masked."""
    x0, y0, x1, y1 = (float(side) for side in mask_to_box(mask))
    crop = square_crop(image, mask, (x0, y0, x1, y1), expand=float(rng.uniform(1, 2)))
    return apply_style(crop, "masked", fill=(0, 0, 0)) if rng.random() < 0.5 else crop.image


def train_clip(options: Options) -> TinyClip:
    """Contrastive training on crops of seen combinations, against the captions of all seen ones."""
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    clip = TinyClip()
    optimizer = torch.optim.AdamW(clip.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, options.clip_steps)
    for step in range(1, options.clip_steps + 1):
        targets = rng.choice(len(SEEN), 10, replace=False)
        crops, labels = draw_crops([SEEN[target] for target in targets], rng)
        logits = F.normalize(clip.encode_image(crops), dim=1) @ caption_vectors(clip, SEEN).T * clip.logit_scale
        own = labels[:, None] == torch.arange(len(SEEN))  # crops of one picture after the other: captions come again
        by_caption = -(logits.log_softmax(dim=0) * own).sum(dim=0) / own.sum(dim=0).clamp(min=1)
        loss = (F.cross_entropy(logits, labels) + by_caption.sum() / own.any(dim=0).sum()) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(json.dumps({"clip_step": step, "loss": round(loss.item(), 3)}), flush=True)
    return clip.eval().requires_grad_(False)


def draw_crops(targets, rng: np.random.Generator) -> tuple[list[np.ndarray], torch.Tensor]:
    """A picture for each target, and of every object in it a crop and its place in `SEEN`."""
    crops, labels = [], []
    for target in targets:
        combinations = draw_combinations(target, rng)
        image, masks = picture(combinations, rng)
        crops += [random_crop(image, mask, rng) for mask in masks]
        labels += [SEEN.index(combination) for combination in combinations]
    return crops, torch.tensor(labels)


def caption_vectors(clip: TinyClip, combinations) -> torch.Tensor:
    """Unit vectors of "a COLOUR SHAPE"."""
    return F.normalize(clip.encode_text([f"a {colour} {shape}" for colour, shape in combinations]), dim=1)


def load_clip(path: str) -> TinyClip:
    """The tiny CLIP of an earlier run."""
    clip = TinyClip()
    clip.load_state_dict(torch.load(path, weights_only=True))
    return clip.eval().requires_grad_(False)


@torch.no_grad()
def check_clip(clip: TinyClip, combinations, rng: np.random.Generator, times: int = 10) -> dict[str, float]:
    """Share of crops whose nearest caption among all 72 is the right one, and how near crops are to their own."""
    captions = caption_vectors(clip, ALL)
    right = torch.tensor([ALL.index(combination) for combination in combinations])
    cosines = []
    for _ in range(times):
        pictures = [picture(draw_combinations(target, rng), rng) for target in combinations]
        crops = [random_crop(image, masks[0], rng) for image, masks in pictures]
        cosines.append(F.normalize(clip.encode_image(crops), dim=1) @ captions.T)
    nearest, own = torch.stack(cosines).argmax(dim=2), torch.stack(cosines)[:, torch.arange(len(right)), right]
    return {"accuracy": float(nearest.eq(right).float().mean()), "cosine": float(own.mean())}


class TinyEncoder(nn.Module):
    """A small image encoder with embedding cells of four pixels."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.img_size, self.patch_size = SIDE, CELL
        self.layers = nn.Sequential(
            *_conv(3, 32),
            *_conv(32, width),
            *(layer for dilation in (1, 2, 4) for layer in _dilated(width, dilation)),
            nn.Conv2d(width, width, 1),
            LayerNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) -> (B, width, S / 4, S / 4)."""
        return self.layers(x)


def _dilated(width: int, dilation: int) -> list[nn.Module]:
    return [nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation), nn.GroupNorm(8, width), nn.GELU()]


def tiny_sam(width: int = 64) -> Sam:
    """SAM's prompt encoder and decoder behind the tiny encoder; masks have a cell for each pixel."""
    cells = SIDE // CELL
    prompts = PromptEncoder(width, (cells, cells), (SIDE, SIDE), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=width, num_heads=4, mlp_dim=2 * width)
    sam = Sam(TinyEncoder(width), prompts, MaskDecoder(transformer_dim=width, transformer=transformer))
    sam.name = "toy_text"
    return sam


def draw_pair(target, rng: np.random.Generator) -> list[tuple[str, str]]:
    """The target and an object that shares neither colour nor shape with it."""
    others = [c for c in SEEN if c[0] != target[0] and c[1] != target[1]]
    return [target, others[rng.integers(len(others))]]


class Pictures:
    """Pictures of seen combinations, each drawn anew whenever it is read."""

    def __init__(self, count: int, draw: Draw, seed: int) -> None:
        self.count, self.draw = count, draw
        self.rng = np.random.default_rng((1, seed))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> SegmentationSample:
        image, masks = picture(self.draw(SEEN[self.rng.integers(len(SEEN))], self.rng), self.rng)
        return SegmentationSample(image, masks, np.zeros(len(masks), np.int64), f"picture {index}")


def train_sam(clip: TinyClip, options: Options) -> Sam:
    """The paper's recipe, with the tiny CLIP's image vectors; no word is used.

    Begun on four objects at once, the network finds all objects and for long none in particular: any of them is right
    a third of the time. Of two unlike ones it learns to choose within a hundred steps, and keeps that.
    """
    torch.manual_seed(options.seed)
    sam = tiny_sam()
    stages = (
        ("pairs", draw_pair, options.pair_steps, 2e-3),
        ("sam", draw_combinations, options.sam_steps, 1.2e-3),
    )
    for name, draw, steps, rate in stages:
        if not steps:
            continue
        pictures, held_out = Pictures(400, draw, options.seed), Pictures(40, draw, options.seed + 1)
        text = TextOptions(min_area_px=50, rounds=options.rounds, attend_inside=False, seed=options.seed)
        loop = LoopOptions(
            epochs=max(1, steps // 100), batch_size=4, lr=rate, weight_decay=0.0, layer_decay=1.0, schedule="cosine",
            warmup_steps=50, progress=False, save_every=10**6, tensorboard=False, seed=options.seed,
        )  # fmt: skip
        task = TextTask(sam, clip, pictures, held_out, text)
        history = Loop(task, loop, Path(options.out) / name).run().history
        print(json.dumps({name: [round(float(row["valid_iou_text"]), 3) for row in history]}), flush=True)
    return sam.eval()


def hit_rate(sam: Sam, clip: TinyClip, combinations, rng: np.random.Generator, times: int = 25) -> dict[str, float]:
    """Prompt pictures with "a COLOUR SHAPE"; a hit overlaps the named object by more than a half.

    The other objects are drawn from all combinations, held-out ones too.
    """
    prompter = TextPrompter(sam, clip)
    overlaps = []
    for target in combinations:
        for _ in range(times):
            image, masks = picture(draw_combinations(target, rng, among=ALL), rng)
            found = prompter.decode(sam.encode(image), [f"a {target[0]} {target[1]}"]).best().masks()[0]
            overlaps.append(mask_iou(found.numpy(), masks[:1])[0, 0])
    return {"hit_rate": float(np.mean(np.array(overlaps) > 0.5)), "mean_iou": float(np.mean(overlaps))}


def main(options: Options) -> dict:
    """Train both, measure, write `report.json`."""
    torch.set_num_threads(options.threads)
    started = time.time()
    rng = np.random.default_rng(options.seed + 1000)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    own = out / "clip.pt"
    known = options.clip or (str(own) if own.is_file() else "")
    clip = load_clip(known) if known else train_clip(options)
    torch.save(clip.state_dict(), own)
    report = {"clip_held_out": check_clip(clip, HELD_OUT, rng), "clip_minutes": (time.time() - started) / 60}
    print(json.dumps(report), flush=True)
    sam = train_sam(clip, options)
    with torch.inference_mode():
        report["seen"] = hit_rate(sam, clip, SEEN, rng, times=5)
        report["held_out"] = hit_rate(sam, clip, HELD_OUT, rng)
    report |= {"minutes": (time.time() - started) / 60, "options": asdict(options)}
    (out / "report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return report


def parse() -> Options:
    """Options from the command line, one flag for each field."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Options):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    main(parse())
