"""Train the bundled model `nano` from nothing.

    python recipes/nano.py --data DATA --cache CACHE/train --out RUN --steps 3000

Every step: one encoding of a batch of crops; four objects in each, two by a noisy box, two by a point; then up to three
rounds of corrections (points from the error region, with the last mask as prompt), drawn by `simulate.py`. Weights and
activations are bfloat16, with float32 master weights, and an exponential moving average is what gets published. The run
saves itself and goes on where it stopped.

Learning rate: warm-up, constant, then linear to zero over the last part, so that `--steps` may be changed on resume.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nano_data import CropOptions, Crops, Packed, pack, validation

from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.nano import build_nano_parts
from segment_anything.simulate import mask_boxes, noisy_boxes, random_error_points, random_points
from segment_anything.training.losses import (
    DICE_WEIGHT,
    FOCAL_WEIGHT,
    IOU_WEIGHT,
    dice_loss,
    focal_loss,
    true_iou,
)

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run may vary."""

    data: str = "../shared/data/train"
    """Folder of data sets, each with index.jsonl."""
    cache: str = "runs/cache/train"
    """The packed data is written here, or found here."""
    out: str = "runs/nano"
    """Checkpoints and log."""
    steps: int = 3000
    """Steps of the whole run."""
    batch: int = 8
    """Crops of 256 pixels a step; a larger size has as many pixels in all."""
    objects: int = 4
    """Objects of each crop; half are prompted by a box, half by a point."""
    sizes: str = "256:0.5,384:0.25,512:0.25"
    """Sides of the crops in input pixels, each with its share of the steps; larger crops come in smaller batches."""
    lr: float = 4e-4
    """Largest learning rate. At 1e-3 the loss stalls after 500 steps while the gradients grow."""
    weight_decay: float = 0.05
    """On matrices and kernels only."""
    warmup: int = 200
    """Steps of linear warm-up."""
    decay: float = 0.3
    """Share of the steps over which the learning rate falls to zero."""
    ema: float = 0.998
    """Decay of the moving average a step."""
    rounds: str = "0.35,0.3,0.2,0.15"
    """Chance of 0, 1, 2, 3 rounds of corrections after the first prompt."""
    save_every: int = 100
    """Steps between checkpoints."""
    check_every: int = 500
    """Steps between looks at held-out images."""
    threads: int = 0
    """Threads; 0 leaves torch's choice."""
    seed: int = 0
    """Of weights, crops and clicks."""
    init: str = ""
    """Checkpoint of another run, or published weights, to start from where names and shapes agree."""
    workers: int = 1
    """Processes that cut crops."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    minutes: float = 0.0
    """Stop (saving) after this time; 0 never."""


class Nano(nn.Module):
    """The three parts in one module, for any square crop."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.image_encoder, self.prompt_encoder, self.mask_decoder = build_nano_parts(size)
        self.resize(size)

    def resize(self, size: int) -> None:
        """Set the side of the square input; no weight depends on it."""
        grid = size // self.image_encoder.patch_size
        self.image_encoder.img_size = size
        self.prompt_encoder.input_image_size = (size, size)
        self.prompt_encoder.image_embedding_size = (grid, grid)
        self.prompt_encoder.mask_input_size = (4 * grid, 4 * grid)

    def normalise(self, images: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) uint8 -> float, zero in the padding."""
        mean = torch.tensor(PIXEL_MEAN, device=images.device).view(3, 1, 1)
        std = torch.tensor(PIXEL_STD, device=images.device).view(3, 1, 1)
        dtype = self.prompt_encoder.no_mask_embed.weight.dtype
        values = (images.float() - mean) / std * inside[:, None]
        return values.to(dtype).contiguous(memory_format=torch.channels_last)

    def decode(self, features, points, boxes, masks):
        """All four masks and predicted IoU of N objects; prompts in input pixels."""
        dtype = self.prompt_encoder.no_mask_embed.weight.dtype
        sparse, dense = self.prompt_encoder(points, boxes, None if masks is None else masks.to(dtype))
        dense = self.prompt_encoder.ground(dense, features)
        pe = self.prompt_encoder.get_dense_pe()
        return self.mask_decoder.predict_masks(features, pe, sparse, dense)


class Master:
    """Float32 master weights and their moving average behind a bfloat16 model; plain AdamW otherwise."""

    def __init__(self, model: nn.Module, options: Options, half: bool) -> None:
        self.model, self.options, self.half = model, options, half
        self.names = [name for name, _ in model.named_parameters()]
        self.master = [p.detach().float().clone() for p in model.parameters()]
        if half:
            for module in model.modules():
                if not isinstance(module, nn.LayerNorm | nn.BatchNorm2d | LayerNorm2d):
                    for p in module.parameters(recurse=False):
                        p.data = p.data.bfloat16()
        matrices = [p for p in self.master if p.ndim > 1]
        vectors = [p for p in self.master if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.999), fused=True)
        self.average = {name: t.clone() for name, t in self.state().items()}

    def state(self) -> dict[str, torch.Tensor]:
        """Float32 weights and buffers by name."""
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        state.update(zip(self.names, self.master, strict=True))
        return state

    def step(self, rate: float, decay: float) -> float:
        """One update from the model's gradients; the gradient's norm before clipping."""
        for master, p in zip(self.master, self.model.parameters(), strict=True):
            master.grad = None if p.grad is None else p.grad.float()
            p.grad = None
        norm = float(torch.nn.utils.clip_grad_norm_(self.master, 1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            for master, p in zip(self.master, self.model.parameters(), strict=True):
                p.copy_(master)
            for name, value in {**self.model.state_dict(), **dict(zip(self.names, self.master, strict=True))}.items():
                if value.is_floating_point():
                    self.average[name].lerp_(value.float(), 1 - decay)
                else:
                    self.average[name].copy_(value)
        return norm

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over float32 weights and buffers."""
        self.model.load_state_dict(state)
        for name, master in zip(self.names, self.master, strict=True):
            master.copy_(state[name])


def combined_loss(logits, iou, truth, ambiguous: bool):
    """The paper's loss on the best of three, and the same on the single mask; true IoU for the log."""
    logits, truth = logits.float(), truth.float()
    each = FOCAL_WEIGHT * focal_loss(logits, truth) + DICE_WEIGHT * dice_loss(logits, truth)  # N 4
    quality = true_iou(logits.detach(), truth)
    error = (iou.float() - quality).square()
    best, single = each[:, 1:].min(dim=1).values.mean(), each[:, 0].mean()
    weights = (1.0, 0.3) if ambiguous else (0.5, 1.0)
    return weights[0] * best + weights[1] * single + IOU_WEIGHT * error.mean(), quality


def train_step(model: Nano, batch, rng: np.random.Generator, extra_rounds: int):
    """The loss of one batch over all rounds, and the numbers worth logging."""
    images, masks, inside = batch
    model.resize(images.shape[-1])
    features = model.image_encoder(model.normalise(images, inside))
    count = masks.shape[1] // 2
    size = model.image_encoder.img_size
    generator = torch.Generator(device=images.device).manual_seed(int(rng.integers(2**31)))
    total, shown = 0.0, {}
    per_object = features.repeat_interleave(count, dim=0).contiguous(memory_format=torch.channels_last)
    for kind, part in (("box", slice(0, count)), ("point", slice(count, 2 * count))):
        truth = masks[:, part].flatten(0, 1)  # N h w
        points = boxes = previous = None
        if kind == "box":
            relative = 0.1 * torch.rand(len(truth), 1, generator=generator, device=truth.device) ** 2
            boxes = noisy_boxes(mask_boxes(truth) * 2 + 0.5, (size, size), generator, relative, at_most=10.0)
        else:
            points = (
                random_points(truth, generator)[:, None] * 2 + 0.5,
                torch.ones(len(truth), 1, device=truth.device),
            )
        for turn in range(1 + extra_rounds):
            logits, iou = model.decode(per_object, points, boxes, previous)
            loss, quality = combined_loss(logits, iou, truth[:, None], ambiguous=turn == 0 and kind == "point")
            total = total + loss
            if turn == 0:
                shown[kind] = float(quality[:, 0].mean() if kind == "box" else quality[:, 1:].amax(dim=1).mean())
            elif turn == extra_rounds:
                shown[f"{kind}_last"] = float(quality[:, 0].mean())
            if turn == extra_rounds:
                break
            detached = logits.detach().float()
            if turn == 0 and kind == "point":
                chosen = 1 + iou[:, 1:].detach().argmax(dim=1)
            else:
                chosen = torch.zeros(len(truth), dtype=torch.long, device=truth.device)
            previous = detached[torch.arange(len(truth)), chosen][:, None].clamp(-32, 32)
            where, label = random_error_points(previous[:, 0] > 0, truth, generator)
            new = (where[:, None] * 2 + 0.5, label[:, None].float())
            points = new if points is None else (torch.cat([points[0], new[0]], 1), torch.cat([points[1], new[1]], 1))
    return total / (2 * (1 + extra_rounds)), shown


@torch.no_grad()
def check(model: Nano, master: Master, packed: Packed, device: torch.device) -> dict[str, float]:
    """Mean IoU of the averaged weights on held-out images at 512 pixels: box (single mask), click (best of three)."""
    state = master.state()
    model.load_state_dict(master.average)
    model.eval()
    size = model.image_encoder.img_size
    model.resize(512)
    result: dict[str, float] = {}
    for name in ("coco_cc", "feral_cats", "dsb2018_nuclei"):
        box_iou, click_iou = [], []
        for image, masks in validation(packed, (name,), 512):
            image, truth = image.to(device), masks.to(device)
            inside = image.any(dim=0)[None]
            features = model.image_encoder(model.normalise(image[None], inside))
            boxes = mask_boxes(truth) * 2 + 0.5
            points = random_points(truth, torch.Generator(device=device).manual_seed(1))[:, None] * 2 + 0.5
            logits, _ = model.decode(features, None, boxes, None)
            box_iou += true_iou(logits[:, :1].float(), truth[:, None]).flatten().tolist()
            logits, _ = model.decode(features, (points, torch.ones(len(truth), 1, device=device)), None, None)
            click_iou += true_iou(logits[:, 1:].float(), truth[:, None]).amax(dim=1).tolist()
        result[f"{name}_box"], result[f"{name}_click"] = float(np.mean(box_iou)), float(np.mean(click_iou))
    model.resize(size)
    model.train()
    master.load(state)
    return result


def save(path: Path, **content) -> None:
    """Write a checkpoint so that a kill leaves the old one or the new one, never half of one."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    os.replace(part, path)


def rate_at(step: int, options: Options) -> float:
    """Warm-up, constant, linear decay."""
    left = (options.steps - step) / max(1.0, options.decay * options.steps)
    return options.lr * min(1.0, (step + 1) / options.warmup, max(left, 0.01))


class Batches(torch.utils.data.IterableDataset):
    """An endless stream of batches, each of one crop size drawn at random."""

    def __init__(self, packed: Packed, options: Options, seed: int) -> None:
        self.packed, self.options, self.seed = packed, options, seed

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        rng = np.random.default_rng(self.seed)
        pairs = [pair.split(":") for pair in self.options.sizes.split(",")]
        crops = [Crops(self.packed, CropOptions(size=int(size), objects=self.options.objects), 0) for size, _ in pairs]
        shares = np.array([float(share) for _, share in pairs])
        while True:
            source = crops[rng.choice(len(crops), p=shares / shares.sum())]
            count = max(2, round(self.options.batch * (256 / source.options.size) ** 2))
            samples: list[tuple[torch.Tensor, ...]] = []
            while len(samples) < count:
                sample = source.draw(rng)
                if sample is not None:
                    samples.append(sample)
            yield [torch.stack(parts) for parts in zip(*samples, strict=True)]


def batches(packed: Packed, options: Options, step: int) -> Iterator[list[torch.Tensor]]:
    """Batches from `step` on; a resumed run draws other crops than it would have drawn, never the same twice."""
    stream = Batches(packed, options, options.seed * 1000 + step)
    loader = torch.utils.data.DataLoader(
        stream,
        batch_size=None,
        num_workers=options.workers,
        worker_init_fn=_seed_worker,
        prefetch_factor=8 if options.workers else None,
    )
    return iter(loader)


def _seed_worker(worker: int) -> None:
    info = torch.utils.data.get_worker_info()
    info.dataset.seed = info.dataset.seed * 64 + worker
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # not on the core that a pinned trainer was given


def main(options: Options) -> None:
    """Train until the last step or the time limit; a killed run goes on from its last checkpoint."""
    started = time.time()
    if options.threads:
        torch.set_num_threads(options.threads)
    cache, out = Path(options.cache), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if not cache.with_suffix(".pkl").is_file():
        pack(Path(options.data), cache)
    packed = Packed(cache)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(found if options.device == "auto" else options.device)
    torch.manual_seed(options.seed)
    model = Nano(256).to(device, memory_format=torch.channels_last)
    if options.init:
        if options.init.endswith(".safetensors"):  # a published file
            start = {name: value.float() for name, value in load_file(options.init).items()}
        else:
            start = torch.load(options.init, map_location=device, weights_only=True)["weights"]
        missing = model.load_state_dict(start, strict=False).missing_keys
        print(f"weights from {options.init}; {len(missing)} entries are new", flush=True)
    master = Master(model, options, half=True)
    step, seconds = 0, 0.0
    last = out / "last.pt"
    if last.is_file():
        kept = torch.load(last, map_location=device, weights_only=True)
        master.load(kept["weights"])
        master.optimizer.load_state_dict(kept["optimizer"])
        master.average = kept["average"]
        step, seconds = kept["step"], kept["seconds"]
    model.train()
    chances = np.array([float(x) for x in options.rounds.split(",")])
    log = open(out / "log.jsonl", "a", buffering=1)  # noqa: SIM115  (closed at the end of the run)
    log.write(json.dumps({"start": step, **asdict(options)}) + "\n")
    rng = np.random.default_rng(options.seed * 7919 + step)
    mark, shown_sum = time.time(), {}
    for batch in batches(packed, options, step):
        if step >= options.steps:
            break
        batch = [t.to(device, non_blocking=True) for t in batch]
        loss, shown = train_step(model, batch, rng, int(rng.choice(len(chances), p=chances / chances.sum())))
        loss.backward()
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss is {float(loss)} at step {step}; the last good checkpoint is {last}")
        norm = master.step(rate_at(step, options), min(options.ema, (step + 1) / (step + 10)))
        step += 1
        for key, value in {"loss": float(loss.detach()), "norm": norm, **shown}.items():
            shown_sum.setdefault(key, []).append(value)
        if step % 20 == 0:
            line = {key: round(float(np.mean(value)), 4) for key, value in shown_sum.items()}
            line = {"step": step, "s_per_step": round((time.time() - mark) / 20, 3), **line}
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            mark, shown_sum = time.time(), {}
        over = options.minutes and time.time() - started > 60 * options.minutes
        if step % options.save_every == 0 or step == options.steps or over:
            total = seconds + time.time() - started
            save(
                last,
                weights=master.state(),
                optimizer=master.optimizer.state_dict(),
                average=master.average,
                step=step,
                seconds=total,
            )
        if step % options.check_every == 0 or step == options.steps:
            result = {
                "check": step,
                "hours": round((seconds + time.time() - started) / 3600, 3),
                **{k: round(v, 4) for k, v in check(model, master, packed, device).items()},
            }
            print(json.dumps(result), flush=True)
            log.write(json.dumps(result) + "\n")
            mark = time.time()
        if over:
            break
    log.close()


def parse() -> Options:
    """Options from the command line, one flag for each field."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Options):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    main(parse())
