"""Find all objects in images: one file, many, a folder, or a pattern in quotes.

Finished images are skipped, so an interrupted run goes on where it was. Files appear only when they are whole.
An image that cannot be read is told in one line and the rest goes on; the exit status is 1 if any failed.

    segment-anything generate photo.jpg --out masks --format overlay
    segment-anything generate 'photos/**/*.jpg' --out masks --format rle,coco
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything.cli._files import write_json
from segment_anything.cli._jobs import Job, find_jobs
from segment_anything.cli._model import ModelOptions
from segment_anything.cli._options import Panel, expand_dataclasses
from segment_anything.cli._results import PER_IMAGE, Result, check_formats, read_records, targets, write_coco
from segment_anything.images import MAX_PIXELS, read_image


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
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON for machines.")] = False,
) -> None:
    chosen = check_formats(formats or [])
    jobs = find_jobs(sources, out)
    _check_settings(out / "settings.json", {**asdict(masks), **asdict(model)}, overwrite)
    summary = Summary(images=len(jobs))
    start = time.perf_counter()
    pending = jobs if overwrite else [job for job in jobs if not _finished(job, chosen, out)]
    summary.skipped = len(jobs) - len(pending)
    _run(pending, chosen, out, model, masks, summary, overwrite, max_pixels or None)
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


def _run(
    jobs: Sequence[Job],
    formats: Sequence[str],
    out: Path,
    model: ModelOptions,
    masks: AutomaticMaskOptions,
    summary: Summary,
    overwrite: bool,
    max_pixels: int | None,
) -> None:
    """Segment each image and write its results. The model is loaded for the first image that needs it."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    segment = _Segmenter(model, masks)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=len(jobs))
        for job in jobs:
            missing = {f: path for f, path in targets(job, formats, out).items() if overwrite or not path.exists()}
            try:
                pixels = read_image(job.image, max_pixels=max_pixels)
                records = None if overwrite else read_records(job, out)
                result = Result(job, pixels, segment(pixels) if records is None else records)
            except (ValueError, OSError, MemoryError, RuntimeError) as error:  # of this image: the others go on
                reason = " ".join(str(error).split()) or type(error).__name__
                reason = reason if str(job.image) in reason else f"{job.image}: {reason}"
                summary.failed.append({"file": str(job.image), "error": reason})
                console.print(f"failed: {reason}", markup=False)
            else:
                for format, path in missing.items():
                    PER_IMAGE[format].write(path, result)
                summary.done += 1
                summary.masks += len(result.records)
            progress.advance(task)


class _Segmenter:
    """The automatic mask generator, made at its first use."""

    def __init__(self, model: ModelOptions, masks: AutomaticMaskOptions) -> None:
        self._model, self._masks = model, masks
        self._generator: Any = None

    def __call__(self, pixels: np.ndarray) -> list[Any]:
        if self._generator is None:
            from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator

            options = {**asdict(self._masks), "output_mode": "coco_rle"}
            self._generator = SamAutomaticMaskGenerator(self._model.load(), **options)
        records: list[Any] = self._generator.generate(pixels)
        return records


def _in_words(summary: Summary, out: Path) -> str:
    parts = [f"{summary.done} of {summary.images} images, {summary.masks} masks, {summary.seconds:.1f} s, in {out}"]
    if summary.skipped:
        parts.append(f"{summary.skipped} skipped (finished before)")
    if summary.failed:
        parts.append(f"{len(summary.failed)} failed")
    return "; ".join(parts)
