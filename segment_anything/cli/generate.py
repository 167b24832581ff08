"""Find all objects in images: one file, many, a folder, or a pattern in quotes.

Finished images are skipped, so an interrupted run goes on where it was. Files appear only when they are whole.
An image that cannot be read is told in one line and the rest goes on; the exit status is 1 if any failed.
While the masks of one image are found and written, the next is read already, and on a CUDA GPU encoded.

    segment-anything generate photo.jpg --out masks --format overlay
    segment-anything generate 'photos/**/*.jpg' --out masks --format rle,coco
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything.cli._ahead import one_ahead
from segment_anything.cli._console import complaints
from segment_anything.cli._files import write_json
from segment_anything.cli._jobs import Job, find_jobs
from segment_anything.cli._model import ModelOptions
from segment_anything.cli._options import Panel, expand_dataclasses
from segment_anything.cli._results import PER_IMAGE, Result, check_formats, read_records, targets, write_coco
from segment_anything.images import MAX_PIXELS, read_image

if TYPE_CHECKING:
    import numpy as np

    from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
    from segment_anything.embedding import ImageEmbedding
    from segment_anything.modeling import Sam


@dataclass
class Summary:
    """What a run did."""

    images: int
    done: int = 0
    skipped: int = 0
    masks: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


@expand_dataclasses
def command(
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE|FOLDER|GLOB...", help="Images. A folder means those in it.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")],
    model: Annotated[ModelOptions, Panel("Model")],
    masks: Annotated[AutomaticMaskOptions, Panel("Masks", without=("output_mode",))],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="png|rle|coco|overlay|yolo|labelme",
            help="Repeat it, or use commas. rle: NAME.json, all records, as SA-1B (the default). "
            "coco: coco.json of all images, besides rle. png: NAME_masks/0.png, ... and metadata.csv. "
            "overlay: NAME_overlay.png, a picture. yolo: NAME.txt. labelme: NAME_labelme.json.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished images again.")] = False,
    max_pixels: Annotated[int, typer.Option(help="Refuse larger images; 0 takes any.")] = MAX_PIXELS,
    explain: Annotated[bool, typer.Option("--explain", help="Tell how many masks each filter took away.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON for machines.")] = False,
) -> None:
    chosen = check_formats(formats or [])
    jobs = find_jobs(sources, out)
    _check_settings(out / "settings.json", {**asdict(masks), **asdict(model)}, overwrite)
    start = time.perf_counter()
    run = _Run(out, chosen, overwrite, max_pixels or None, Summary(images=len(jobs)))
    summary = run.do(jobs, lambda: _generator(model, masks, explain))
    if "coco" in chosen:
        write_coco(out / "coco.json", [job for job in jobs if _finished(job, ("rle",), out)], out)
    summary.seconds = round(time.perf_counter() - start, 3)
    print(json.dumps(asdict(summary)) if as_json else _in_words(summary, out))
    if summary.failed:
        raise typer.Exit(1)


def _finished(job: Job, formats: Sequence[str], out: Path) -> bool:
    return all(path.exists() for path in targets(job, formats, out).values())


# Settings that change no mask beyond rounding, so that a run may go on with others.
_SPEED_ONLY = {"points_per_batch", "device", "output_mode"}


def _check_settings(path: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Write down the settings of a run, or refuse to mix its results with those of other settings."""
    settings = {name: value for name, value in settings.items() if name not in _SPEED_ONLY}
    if path.exists() and not overwrite:
        before = json.loads(path.read_text("utf-8"))
        changed = [f"{n} was {before.get(n)} and is {v}" for n, v in settings.items() if before.get(n) != v]
        if changed:
            raise ValueError(
                f"{path.parent} holds results of other settings: {'; '.join(changed)}. "
                "Give another --out, the same settings, or --overwrite."
            )
    write_json(path, settings)


def _generator(model: ModelOptions, masks: AutomaticMaskOptions, explain: bool) -> SamAutomaticMaskGenerator:
    from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator  # imports torch

    options = {**asdict(masks), "output_mode": "coco_rle"}
    return SamAutomaticMaskGenerator(model.load(), **options, explain=explain)


def _encode_if_possible(sam: Sam, pixels: np.ndarray) -> ImageEmbedding | None:
    """The embedding, or None: at its turn the image has more memory to itself, and what is still wrong is told then."""
    import torch

    try:
        with torch.no_grad():
            return sam.encode(pixels)
    except (MemoryError, RuntimeError):
        return None


@dataclass(frozen=True)
class _Loaded:
    """What can be had of an image before its turn."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    embedding: ImageEmbedding | None


@dataclass
class _Run:
    """One run over many images."""

    out: Path
    formats: Sequence[str]
    overwrite: bool
    max_pixels: int | None
    summary: Summary
    console: Console = field(default_factory=complaints)
    encodes_ahead_on: Sequence[str] = ("cuda",)
    """Kinds of devices that encode an image before its turn. A CPU is busy with the image in hand; on Apple's GPUs two
    threads crash each other (https://github.com/pytorch/pytorch/issues/197805)."""

    def do(self, jobs: Sequence[Job], make_generator: Callable[[], SamAutomaticMaskGenerator]) -> Summary:
        """Write what is wanted of each image and not there yet. Without a new image no model is loaded."""
        pending = [job for job in jobs if self.overwrite or not _finished(job, self.formats, self.out)]
        self.summary.skipped = len(jobs) - len(pending)
        generator = make_generator() if any(map(self._is_new, pending)) else None
        loaded = one_ahead(pending, lambda job: self._load(job, generator))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not self.console.is_terminal
        with closing(loaded), Progress(*columns, console=self.console, transient=True, disable=hidden) as progress:
            for job, loading in progress.track(loaded, total=len(pending), description="images"):
                self._do_one(job, loading, generator)
        return self.summary

    def _is_new(self, job: Job) -> bool:
        return self.overwrite or not _finished(job, ("rle",), self.out)

    def _load(self, job: Job, generator: SamAutomaticMaskGenerator | None) -> _Loaded:
        """In the thread that is one image ahead."""
        pixels = read_image(job.image, max_pixels=self.max_pixels)
        if generator is None or generator.model.device.type not in self.encodes_ahead_on or not self._is_new(job):
            return _Loaded(pixels, None)
        return _Loaded(pixels, _encode_if_possible(generator.model, pixels))

    def _do_one(self, job: Job, loading: Future[_Loaded], generator: SamAutomaticMaskGenerator | None) -> None:
        try:
            image = loading.result()
            records = None if self.overwrite else read_records(job, self.out)
            if records is None and generator is not None:
                records = [*generator.generate(image.pixels, embedding=image.embedding)]
                if generator.last_explanation:
                    self.console.print(f"{job.image}\n{generator.last_explanation}")
        except (ValueError, OSError, MemoryError, RuntimeError) as error:  # of this image: the others go on
            self._note_failure(job.image, error)
            return
        finally:
            del loading  # it holds the error, whose traceback holds this frame: they would keep each other
        result = Result(job, image.pixels, records or [])
        for format, path in targets(job, self.formats, self.out).items():
            if self.overwrite or not path.exists():
                PER_IMAGE[format].write(path, result)
        self.summary.done += 1
        self.summary.masks += len(result.records)

    def _note_failure(self, image: Path, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if str(image) in reason else f"{image}: {reason}"
        self.summary.failed.append({"file": str(image), "error": reason})
        self.console.print(f"failed: {reason}")


def _in_words(summary: Summary, out: Path) -> str:
    parts = [f"{summary.done} of {summary.images} images, {summary.masks} masks, {summary.seconds:.1f} s, in {out}"]
    if summary.skipped:
        parts.append(f"{summary.skipped} skipped (finished before)")
    if summary.failed:
        parts.append(f"{len(summary.failed)} failed")
    return "; ".join(parts)
