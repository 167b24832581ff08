"""Encoder distillation, as MobileSAM was made (https://arxiv.org/abs/2306.14289).

The student's image encoder regresses the teacher's image embeddings, which are computed once and kept on disk; prompt
encoder and mask decoder are the teacher's and stay as they are. No mask is needed. Joint fine-tuning afterwards is
ordinary fine-tuning of the student with `train="all"`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, mse_loss
from tqdm.auto import tqdm

from segment_anything.datasets import SampleError, SegmentationSample, Skipped, SkippedSamples
from segment_anything.modeling import Sam
from segment_anything.training.augment import AugmentOptions, augment
from segment_anything.training.distributed import Workers, join_workers
from segment_anything.training.embedding_cache import EmbeddingCache
from segment_anything.training.files import write_checkpoint
from segment_anything.training.loop import Loop
from segment_anything.training.options import LoopOptions
from segment_anything.training.photos import as_tensor, find_photos, hold_out, read_photo
from segment_anything.training.precision import Precision
from segment_anything.training.prepare import model_seed
from segment_anything.training.pretrain_options import DistillOptions
from segment_anything.training.sources import View, read_features
from segment_anything.training.summary import summarise
from segment_anything.training.task import Learned
from segment_anything.utils.transforms import ResizeLongestSide

BATCH_SIZE = 8


@dataclass(frozen=True)
class Lesson:
    """One image, and what the teacher sees in it."""

    name: str
    image: torch.Tensor
    """(3, h, w) uint8, longest side the model's input."""
    embedding: torch.Tensor
    """(1, C, g, g)."""


@dataclass(frozen=True)
class Lessons:
    """Images as they are and augmented, with the teacher's embeddings."""

    paths: tuple[Path, ...]
    views: tuple[tuple[View, ...], ...]
    image_size: int
    augmentation: AugmentOptions
    seed: int
    skipped: tuple[Skipped, ...] = ()
    """Images that could not be read."""

    def __len__(self) -> int:
        return len(self.views)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.paths[self.views[index][0].index])

    def load(self, index: int, epoch: int) -> Lesson:
        """One view of an image; epochs take turns."""
        view = self.views[index][(epoch + index) % len(self.views[index])]
        image = view_of_photo(read_photo(self.paths[view.index]), view, self.augmentation, self.seed)
        resized = ResizeLongestSide(self.image_size).apply_image(image)
        return Lesson(self.name(index), as_tensor(resized), read_features(view.path))


def view_of_photo(image: np.ndarray, view: View, augmentation: AugmentOptions, seed: int) -> np.ndarray:
    """An image (H, W, 3) as the view shows it."""
    if view.number == 0:
        return image
    no_objects = np.zeros((0, *image.shape[:2]), dtype=bool)
    sample = SegmentationSample(image, no_objects, np.zeros(0, dtype=np.int64), "")
    return augment(sample, augmentation, view.generator(seed)).image


class DistillTask:
    """See `task.Task`."""

    metrics: tuple[str, ...] = ("loss",)
    default_lr = 1e-3

    def __init__(
        self,
        student: Sam,
        source: Lessons,
        held_out: Lessons,
        precision: str,
        workers: Workers,
        identity: dict[str, Any],
    ) -> None:
        """Train the image encoder of `student`."""
        self.student = student
        self.module: nn.Module = student.image_encoder
        self.source = source
        self.held_out = held_out
        self.workers = workers
        self.precision = Precision(precision, student.device)
        self._identity = identity

    def learn(self, batch: Sequence[Lesson]) -> Learned:
        """Mean square error of the embeddings."""
        if not batch:
            return Learned(0.0, {"loss": 0.0})
        loss = mse_loss(self._embed(batch), self._wanted(batch)) * len(batch)
        loss.backward()
        return Learned(float(len(batch)), {"loss": float(loss.detach())})

    def validate(self) -> dict[str, float]:
        """Square error and cosine similarity (of the channels of each cell) on held-out images."""
        sums = torch.zeros(3, dtype=torch.float64)
        for index in range(self.workers.rank, len(self.held_out), self.workers.count):
            lesson = [self.held_out.load(index, 0)]
            found, wanted = self._embed(lesson), self._wanted(lesson)
            cosine = cosine_similarity(found, wanted, dim=1).mean()
            sums += torch.tensor([float(mse_loss(found, wanted)), float(cosine), 1.0])
        loss, cosine_sum, count = self.workers.sum(sums).tolist()
        return {"loss": loss / max(1, count), "cosine": cosine_sum / max(1, count), "score": -loss / max(1, count)}

    def save(self, folder: Path, stem: str) -> None:
        """Write `stem.safetensors`, the whole student with the teacher's prompt encoder and decoder."""
        write_checkpoint(self.student, folder / f"{stem}.safetensors")

    def identity(self) -> dict[str, Any]:
        """Student, teacher and options."""
        return self._identity

    def _embed(self, batch: Sequence[Lesson]) -> torch.Tensor:
        inputs = torch.stack([self.student.preprocess(lesson.image) for lesson in batch])
        with self.precision():
            features: torch.Tensor = self.student.image_encoder(inputs)
        return features.float()

    def _wanted(self, batch: Sequence[Lesson]) -> torch.Tensor:
        return torch.cat([lesson.embedding for lesson in batch]).to(self.student.device)


@dataclass(frozen=True)
class DistillResult:
    """What distillation came to."""

    finished: bool
    history: list[dict[str, float]]
    checkpoint: Path
    """A plain checkpoint of the student's kind."""
    summary: str
    """The text of `summary.txt`."""


def adopt(student: Sam, teacher: Sam) -> None:
    """Give the student the teacher's prompt encoder and mask decoder.

    Raises:
        ValueError: if their embeddings differ in shape, or their parts in kind.
    """
    shapes = [
        (sam.image_size, sam.prompt_encoder.embed_dim, sam.prompt_encoder.image_embedding_size)
        for sam in (student, teacher)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{student.name} cannot learn from {teacher.name}: input, channels and cells of the embedding are "
            f"{shapes[0]} and {shapes[1]}. Of the models here, vit_t, vit_b, vit_l and vit_h fit each other; nano fits "
            "itself."
        )
    try:
        student.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
        student.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{student.name} cannot take the decoder of {teacher.name}: {error}") from error


def distill(
    teacher: Sam, student: Sam, data: Path, out: Path, options: DistillOptions, loop: LoopOptions
) -> DistillResult:
    """Teach a student's image encoder; run again it goes on where it stopped.

    Args:
        teacher: not changed.
        student: its encoder is trained in place, the rest becomes the teacher's.
        data: folder of images, or a data set whose images are used.
        out: folder of the run.
        options, loop: how.

    Raises:
        ValueError: if there are no images, or student and teacher do not fit.
        TrainingError, SaveError: as the loop.
    """
    adopt(student, teacher)
    loop = replace(loop, batch_size=loop.batch_size or BATCH_SIZE)
    with join_workers(student.device) as workers:
        model_seed(loop.seed)
        train, held_out = hold_out(find_photos(data), options.valid_fraction)
        cache = EmbeddingCache(options.cache or out / "embeddings", teacher, options.cache_half)
        lessons = prepare_lessons(train, cache, options.views, teacher.image_size, loop, workers)
        exam = prepare_lessons(held_out, cache, 1, teacher.image_size, loop, workers)
        identity = {"teacher": teacher.fingerprint(), "student": student.name, "views": options.views}
        task = DistillTask(student, lessons, exam, options.precision, workers, identity)
        run = Loop(task, loop, out, workers)
        outcome = run.run()
        checkpoint = out / "best.safetensors"
        if not workers.first:
            return DistillResult(outcome.finished, outcome.history, checkpoint, "")
        about = {
            "model": f"{student.name} taught by {teacher.name}, input {student.image_size}",
            "data": f"{data}, {len(train)} images to train on in {options.views} views, {len(held_out)} to validate on",
        }
        skipped = SkippedSamples(len(lessons) + len(exam), {*lessons.skipped, *exam.skipped, *outcome.skipped})
        title = f"{student.name} taught by {teacher.name}"
        text = summarise(run, outcome, title, about, {"checkpoint": checkpoint}, skipped)
    return DistillResult(outcome.finished, outcome.history, checkpoint, text)


def prepare_lessons(
    paths: tuple[Path, ...], cache: EmbeddingCache, views: int, image_size: int, loop: LoopOptions, workers: Workers
) -> Lessons:
    """Let the teacher embed every image `views` times; processes share the work.

    Raises:
        ValueError: if more than a tenth of the images cannot be read.
    """
    cache.check_space(len(paths) * views)
    skipped = SkippedSamples(len(paths))
    mine: dict[int, tuple[View, ...]] = {}
    augmentation = AugmentOptions()
    for index in tqdm(range(workers.rank, len(paths), workers.count), desc="teacher", disable=not loop.progress):
        try:
            image = read_photo(paths[index])
        except SampleError as error:
            skipped.add(str(paths[index]), str(error))
            continue
        plain = [View(index, number, (image.shape[0], image.shape[1])) for number in range(views)]
        mine[index] = tuple(
            replace(view, path=str(cache.ensure(view_of_photo(image, view, augmentation, loop.seed)))) for view in plain
        )
    merged = {index: found for part in workers.gather(mine) for index, found in part.items()}
    views_of = tuple(merged[index] for index in sorted(merged))
    unread = tuple(item for part in workers.gather(skipped.items()) for item in part)
    return Lessons(paths, views_of, image_size, augmentation, loop.seed, unread)
