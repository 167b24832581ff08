"""Pre-training of a ViT encoder by masked autoencoding on images without any masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from segment_anything.datasets import SampleError, SkippedSamples
from segment_anything.modeling import Sam
from segment_anything.modeling.mae import MaskedAutoencoder
from segment_anything.training.distributed import Workers, join_workers
from segment_anything.training.files import write_whole
from segment_anything.training.loop import Loop
from segment_anything.training.options import LoopOptions
from segment_anything.training.photos import Crops, Photo, find_photos, hold_out
from segment_anything.training.precision import Precision
from segment_anything.training.prepare import model_seed
from segment_anything.training.pretrain_options import PretrainOptions
from segment_anything.training.summary import summarise
from segment_anything.training.task import Learned

BATCH_SIZE = 16


@dataclass(frozen=True)
class PretrainResult:
    """What pre-training came to."""

    finished: bool
    history: list[dict[str, float]]
    encoder: Path
    """File of the encoder's weights, for `finetune --encoder-weights`."""
    summary: str
    """The text of `summary.txt`."""


class MaeTask:
    """See `task.Task`."""

    metrics: tuple[str, ...] = ("loss",)
    default_lr = 5e-4

    def __init__(self, sam: Sam, source: Crops, held_out: Crops, options: PretrainOptions, workers: Workers) -> None:
        """Train the image encoder of `sam`, which must be a ViT built for crops of `source.side` pixels."""
        self.sam = sam
        self.autoencoder = MaskedAutoencoder(
            sam.image_encoder,  # type: ignore[arg-type]  # it checks its type
            options.decoder_dim,
            options.decoder_depth,
            max(1, options.decoder_dim // 32),
            options.mask_ratio,
        ).to(sam.device)
        self.module: nn.Module = self.autoencoder
        self.source = source
        self.held_out = held_out
        self.skipped = SkippedSamples(len(held_out))
        self.options = options
        self.workers = workers
        self.precision = Precision(options.precision, sam.device)

    def learn(self, batch: Sequence[Photo]) -> Learned:
        """Hide patches (drawn from torch's own generator, which the loop seeds) and draw them."""
        if not batch:
            return Learned(0.0, {"loss": 0.0})
        with self.precision():
            loss = self.autoencoder(self._pixels(batch)).float().sum()
        loss.backward()
        return Learned(float(len(batch)), {"loss": float(loss.detach())})

    def validate(self) -> dict[str, float]:
        """The loss on held-out images, each hidden in the same way every time."""
        sums = torch.zeros(2, dtype=torch.float64)
        for index in range(self.workers.rank, len(self.held_out), self.workers.count):
            try:
                pixels = self._pixels([self.held_out.load(index, 0)])
            except SampleError as error:
                self.skipped.add(self.held_out.name(index), str(error))
                continue
            with self.precision():
                loss = self.autoencoder(pixels, torch.Generator().manual_seed(index))
            sums += torch.tensor([float(loss), 1.0])
        total, count = self.workers.sum(sums).tolist()
        return {"loss": total / max(1.0, count), "score": -total / max(1.0, count)}

    def save(self, folder: Path, stem: str) -> None:
        """Write `stem.encoder.safetensors`, the encoder without its neck."""
        tensors = {
            f"image_encoder.{name}": tensor.detach().cpu().contiguous()
            for name, tensor in self.sam.image_encoder.state_dict().items()
            if not name.startswith("neck.") and ".rel_pos_" not in name
        }
        note = {"format": "pt", "model": self.sam.name, "image_size": str(self.sam.image_size)}
        write_whole(folder / f"{stem}.encoder.safetensors", lambda file: file.write(save(tensors, note)))

    def identity(self) -> dict[str, Any]:
        """Model and options."""
        own = ("size", "mask_ratio", "decoder_dim", "decoder_depth", "precision")
        return {"model": self.sam.name, **{name: getattr(self.options, name) for name in own}}

    def _pixels(self, batch: Sequence[Photo]) -> torch.Tensor:
        return self.sam.preprocess(torch.stack([photo.image for photo in batch]).to(self.sam.device))


def pretrain(sam: Sam, data: Path, out: Path, options: PretrainOptions, loop: LoopOptions) -> PretrainResult:
    """Pre-train the image encoder of a ViT model; run again it goes on where it stopped.

    Args:
        sam: built for `options.size`; its encoder is trained in place.
        data: folder of images, or a data set whose images are used.
        out: folder of the run.
        options, loop: how.

    Raises:
        ValueError: if there are no images, or the encoder is no ViT.
        TrainingError, SaveError: as the loop.
    """
    loop = replace(loop, batch_size=loop.batch_size or BATCH_SIZE)
    if sam.image_size != options.size:
        raise ValueError(f"the model must be built for images of {options.size} pixels, got {sam.image_size}.")
    with join_workers(sam.device) as workers:
        train, held_out = hold_out(find_photos(data), options.valid_fraction)
        model_seed(loop.seed)
        task = MaeTask(
            sam,
            Crops(train, options.size, loop.seed),
            Crops(held_out, options.size, loop.seed, fixed=True),
            options,
            workers,
        )
        run = Loop(task, loop, out, workers)
        outcome = run.run()
        encoder = out / "best.encoder.safetensors"
        left_out = [*outcome.skipped, *(item for part in workers.gather(task.skipped.items()) for item in part)]
        if not workers.first:
            return PretrainResult(outcome.finished, outcome.history, encoder, "")
        about = {
            "model": f"{sam.name}, crops of {options.size} pixels, {options.mask_ratio:.0%} hidden",
            "data": f"{data}, {len(train)} images to train on, {len(held_out)} to validate on",
        }
        skipped = SkippedSamples(len(train), left_out)
        title = f"masked autoencoding of {sam.name}"
        text = summarise(run, outcome, title, about, {"encoder": encoder}, skipped)
    return PretrainResult(outcome.finished, outcome.history, encoder, text)
