"""Fine-tuning from a data set to a checkpoint: open the data, prepare the model, run the loop, report, read back."""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segment_anything.build_sam import sam_model_registry
from segment_anything.checkpoints import load_checkpoint
from segment_anything.datasets import Dataset, Skipped, SkippedSamples, open_dataset
from segment_anything.embedding import fingerprint_weights
from segment_anything.modeling import Sam
from segment_anything.modeling.lora import merged_copy
from segment_anything.prompts import Prompt
from segment_anything.training.augment import NO_AUGMENTATION, AugmentOptions
from segment_anything.training.classes import ClassHead, ClassPrompts
from segment_anything.training.distributed import Workers, join_workers
from segment_anything.training.embedding_cache import EmbeddingCache
from segment_anything.training.finetune_options import DataOptions, FinetuneOptions
from segment_anything.training.loop import Loop, Outcome
from segment_anything.training.memory import estimate_memory
from segment_anything.training.options import LoopOptions
from segment_anything.training.prepare import (
    checkpoint_blocks,
    choose_trained,
    embed_views,
    load_encoder,
    model_seed,
    set_drop_path,
)
from segment_anything.training.sam_task import SamTask, Trainee
from segment_anything.training.sources import EmbeddingSource, Frame, ImageSource
from segment_anything.training.summary import figures, summarise
from segment_anything.training.task import TrainingError
from segment_anything.training.validation import Validation

MANY_IMAGES = 500
"""From here on a frozen encoder embeds one view of each image, below it four."""
EVERY_OBJECT = 1 << 30
"""Objects of an image where none may be left out: without prompts a missing one would be taught as background."""


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning came to."""

    finished: bool
    """False: a signal stopped it; the same call goes on."""
    before: dict[str, float]
    """Validation figures of the model as it came."""
    after: dict[str, float]
    """Those of the best epoch."""
    history: list[dict[str, float]]
    summary: str
    """The text of `summary.txt`."""


def finetune(
    sam: Sam,
    data: DataOptions,
    out: str | Path,
    options: FinetuneOptions | None = None,
    loop: LoopOptions | None = None,
) -> FinetuneResult:
    """Fine-tune a model on images with masks; the folder `out` gets checkpoints, plot, CSV and summary.

    Run again with the same arguments it goes on where it stopped. Under `torchrun` all processes call it alike.

    Args:
        sam: trained in place, on its device, in float32.
        data: what to learn from.
        out: folder of the run.
        options, loop: the defaults suit most.

    Raises:
        ValueError: if the data set is empty, damaged, or without objects, or options do not fit each other.
        TrainingError: if the loss is no longer a number, or `out` holds another run.
        SaveError: if a file cannot be written; what was there before is unharmed.
    """
    out = Path(out)
    options, loop = (options or FinetuneOptions()).filled(loop or LoopOptions(), _memory_gb(sam.device))
    with join_workers(sam.device) as workers:
        if sam.dtype != torch.float32:
            raise ValueError(
                f"weights must be float32 to be trained, got {sam.dtype}; use precision bf16 to save memory."
            )
        train, valid = open_parts(data)
        started = {"model": sam.name, "image_size": sam.image_size, "weights": fingerprint_weights(sam.state_dict())}
        task = prepare_task(sam, train, valid, out, options, loop, workers, started)
        if workers.first:
            _announce(task, train, valid, options, loop)
        run = Loop(task, loop, out, workers)
        outcome = run.run()
        left_out = {*task.skipped_before, *outcome.skipped, *task.validation.skipped.items()}
        everyone = [item for part in workers.gather(tuple(left_out)) for item in part]
        if not workers.first:
            return FinetuneResult(outcome.finished, {}, {}, outcome.history, "")
        return _finish(task, run, outcome, data, (len(train), len(valid)), everyone)


def open_parts(data: DataOptions) -> tuple[Dataset, Dataset]:
    """Training and validation images.

    Raises:
        ValueError: if there are none, or the data set is damaged.
    """
    dataset = open_dataset(data.data, data.format)
    if data.valid_data is not None:
        train, valid = dataset, open_dataset(data.valid_data, data.format)
        if valid.classes != train.classes:
            raise ValueError(
                f"{data.valid_data} has the classes {', '.join(valid.classes)}, "
                f"{data.data} has {', '.join(train.classes)}."
            )
    else:
        train, valid = dataset.divide(data.valid_fraction)
    ordered = sorted(train.samples, key=lambda sample: sample.name)[: data.max_images]
    held_out = sorted(valid.samples, key=lambda sample: sample.name)
    if data.max_valid_images is not None and len(held_out) > data.max_valid_images:
        held_out = [held_out[i] for i in np.linspace(0, len(held_out) - 1, data.max_valid_images).round().astype(int)]
    return replace(train, samples=tuple(ordered)), replace(valid, samples=tuple(held_out))


def prepare_task(
    sam: Sam,
    train: Dataset,
    valid: Dataset,
    out: Path,
    options: FinetuneOptions,
    loop: LoopOptions,
    workers: Workers,
    started: dict[str, Any],
) -> SamTask:
    """Choose what learns, embed the images if the encoder is frozen, and put the task together."""
    model_seed(loop.seed)
    if options.encoder_weights is not None:
        load_encoder(sam, options.encoder_weights)
    choose_trained(sam, str(options.train), options.lora_rank)
    if options.recomputes:
        checkpoint_blocks(sam.image_encoder)
    set_drop_path(sam.image_encoder, options.drop_path)
    frame = Frame(sam.image_size, sam.mask_input_size)
    augmentation = AugmentOptions(flip_vertical=options.flip_vertical) if options.augment else NO_AUGMENTATION
    objects = EVERY_OBJECT if options.prompts == "none" else int(options.objects or 1)
    cache = None
    source: ImageSource | EmbeddingSource
    if options.train == "decoder":
        cache = EmbeddingCache(options.cache or out / "embeddings", sam, options.cache_half)
        views = options.views or (4 if len(train) <= MANY_IMAGES else 1)
        views = views if options.augment else 1
        skipped = SkippedSamples(len(train), train.skipped)
        embedded = embed_views(train, cache, views, augmentation, loop.seed, skipped, workers, loop.progress)
        source = EmbeddingSource(train, embedded, frame, augmentation, objects, loop.seed)
    else:
        source = ImageSource(train, frame, augmentation, objects, loop.seed)
    trainee = Trainee(sam, _classes(sam, train.classes, options)).to(sam.device)
    identity = {**started, "data": str(train.path.resolve())}
    task = SamTask(trainee, source, Validation(valid, frame, cache, workers), options, identity)
    task.skipped_before = skipped.items() if options.train == "decoder" else train.skipped
    return task


def _classes(sam: Sam, names: tuple[str, ...], options: FinetuneOptions) -> ClassHead | ClassPrompts | None:
    channels = sam.prompt_encoder.embed_dim
    if options.prompts == "none":
        return ClassPrompts(channels, names)
    return ClassHead(channels, names) if options.classes else None


def _announce(task: SamTask, train: Dataset, valid: Dataset, options: FinetuneOptions, loop: LoopOptions) -> None:
    """Say what is about to happen, and how much memory it takes."""
    whole = options.prompts == "none"
    memory = estimate_memory(
        task.sam,
        batch_size=int(loop.batch_size or 1),
        objects=len(train.classes) if whole else int(options.objects or 1),
        precision=str(options.precision),
    )
    asked = "a mask for each class" if whole else f"{options.objects} objects, {options.rounds} rounds"
    trained = sum(p.numel() for p in task.module.parameters() if p.requires_grad)
    print(
        f"{train.format} data set: {len(train)} images to train on, {len(valid)} to validate on, "
        f"{len(train.classes)} class{'es' if len(train.classes) > 1 else ''}.\n"
        f"Preset {options.preset}: {options.train} of {task.sam.name}, {trained / 1e6:.2f} M parameters, "
        f"{loop.batch_size} x {loop.accumulate} images a step, {asked}, "
        f"{options.precision}.\nPeak memory: {memory}.",
        file=sys.stderr,
    )


def _finish(
    task: SamTask,
    run: Loop,
    outcome: Outcome,
    data: DataOptions,
    counts: tuple[int, int],
    skipped: Sequence[Skipped],
) -> FinetuneResult:
    history = outcome.history
    about = {
        "model": f"{task.sam.name}, input {task.sam.image_size}",
        "data": f"{data.data}, {counts[0]} images to train on, {counts[1]} to validate on",
        "trained": f"{task.options.train}, prompts {task.options.prompts}"
        + ("" if task.options.prompts == "none" else f", {task.options.rounds} rounds"),
    }
    title = f"{task.sam.name} on {data.data.name}, {task.options.train}"
    ending = {"read back": read_back(task, run.out / "last.safetensors")}
    text = summarise(run, outcome, title, about, ending, SkippedSamples(len(task.source), skipped))
    best = figures(history[outcome.best_epoch])
    return FinetuneResult(outcome.finished, figures(history[0]), best, history, text)


def read_back(task: SamTask, path: Path) -> str:
    """Load a checkpoint as any user would, and compare what it predicts with the model in memory.

    Raises:
        TrainingError: if it predicts something else.
    """
    sam = task.sam
    task.module.eval()
    if sam.name in sam_model_registry:
        again = sam_model_registry[sam.name](checkpoint=path, image_size=sam.image_size).to(sam.device)
    else:  # a network of one's own
        plain = merged_copy(sam)
        assert isinstance(plain, Sam)
        again = copy.deepcopy(plain)
        load_checkpoint(again, path)
    side = sam.image_size
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    prompts = [
        Prompt.make(points=[[side / 2, side / 2]], labels=[1]),
        Prompt.make(box=[side / 4, side / 4, side / 2, side / 2]),
    ]
    with torch.inference_mode():
        logits = [model.decode(model.encode(image), prompts).low_res_logits for model in (sam, again)]
    difference = float((logits[0] - logits[1]).abs().max())
    if not difference <= 1e-2 * float(logits[0].abs().max()):
        raise TrainingError(f"{path} read back predicts other masks (logits differ by {difference:g}): do not use it.")
    return f"{path.name} predicts the same (largest difference of a logit {difference:.1g})"


def _memory_gb(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory / 1e9
