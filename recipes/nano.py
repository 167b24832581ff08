"""Train the bundled model `nano` from nothing.

    python recipes/nano.py --data DATA --cache CACHE/train --out RUN --steps 3000

Every step: one encoding of a batch of crops; four objects in each, half by a noisy box, half by a point (`--boxes`
moves that share); then up to four rounds of corrections (points from the error region, with the last mask as prompt),
drawn by `simulate.py`. Weights and activations are bfloat16 where the processor multiplies in it, with float32 master
weights, and an exponential moving average is what gets published. The run saves itself and goes on where it stopped.

    python recipes/nano.py --cache CACHE/train --out RUN --init FILE --steps 0

only measures FILE (published weights) on the held-out images.

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

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nano_data import CropOptions, Crops, Packed, pack
from nano_optimizer import Master
from nano_step import Nano, check, train_step

from segment_anything.training.allocator import keep_freed_memory
from segment_anything.training.finetune_options import PRECISIONS
from segment_anything.training.precision import fastest_precision


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
    """Objects of each crop that are prompted."""
    boxes: int = 2
    """Of these, how many by a box; the others by a point. The loss weighs the two kinds by their number."""
    sizes: str = "256:0.35,384:0.25,512:0.4"
    """Sides of the crops in input pixels, each with its share of the steps; larger crops come in smaller batches."""
    lr: float = 5e-4
    """Largest learning rate. At 1e-3, all under AdamW, the loss stalled after 500 steps while the gradients grew."""
    weight_decay: float = 0.05
    """On matrices and kernels only."""
    warmup: int = 200
    """Steps of linear warm-up."""
    decay: float = 0.5
    """Share of the steps over which the learning rate falls to zero."""
    ema: float = 0.998
    """Decay of the moving average a step."""
    rounds: str = "0.6,0.18,0.12,0.06,0.04"
    """Chance of 0, 1, 2, 3, 4 rounds of corrections after the first prompt."""
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
    precision: str = "auto"
    """fp32, bf16, or auto: bf16 on a GPU and on a processor with AVX512_BF16 or AMX."""
    muon: float = 1.0
    """Factor of the learning rate for matrices under Muon; 0 uses AdamW for all."""
    minutes: float = 0.0
    """Stop (saving) after this time; 0 never."""


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
    keep_freed_memory()
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
    if not 0 < options.boxes < options.objects:
        raise SystemExit(f"--boxes must be at least 1 and less than --objects ({options.objects}), got {options.boxes}")
    precision = fastest_precision(device) if options.precision == "auto" else options.precision
    if precision not in PRECISIONS:
        raise SystemExit(f"--precision must be auto or one of {', '.join(PRECISIONS)}, got {precision!r}")
    is_half = precision == "bf16"
    master = Master(model, lr=options.lr, weight_decay=options.weight_decay, muon=options.muon, half=is_half)
    step, seconds = 0, 0.0
    last = out / "last.pt"
    if last.is_file():
        kept = torch.load(last, map_location=device, weights_only=True)
        master.load(kept["weights"])
        master.load_state_dict(kept)
        master.average = kept["average"]
        step, seconds = kept["step"], kept["seconds"]
    model.train()
    chances = np.array([float(x) for x in options.rounds.split(",")])
    log = open(out / "log.jsonl", "a", buffering=1)  # noqa: SIM115  (closed at the end of the run)
    log.write(json.dumps({"start": step, **asdict(options)}) + "\n")
    rng = np.random.default_rng(options.seed * 7919 + step)
    mark, shown_sum = time.time(), {}

    def report_check() -> None:
        hours = round((seconds + time.time() - started) / 3600, 3)
        scores = {name: round(value, 4) for name, value in check(model, master, packed, device).items()}
        line = json.dumps({"check": step, "hours": hours, **scores})
        print(line, flush=True)
        log.write(line + "\n")

    if step >= options.steps:
        report_check()
    for batch in batches(packed, options, step):
        if step >= options.steps:
            break
        batch = [t.to(device, non_blocking=True) for t in batch]
        extra_rounds = int(rng.choice(len(chances), p=chances / chances.sum()))
        loss, shown = train_step(model, batch, rng, extra_rounds, options.boxes)
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
                weights=master.weights(),
                **master.state_dict(),
                average=master.average,
                step=step,
                seconds=total,
            )
        if step % options.check_every == 0 or step == options.steps:
            report_check()
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
