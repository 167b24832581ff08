"""Segments the sample photographs with the bundled model: a click, a box, everything. `make demo` runs it.

Writes into out/: a picture for each question, demo.png with all of them, and records.json; prints a table.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from segment_anything import Sam, SamAutomaticMaskGenerator, SamPredictor, load_sam, read_image
from segment_anything.record_formats import to_sa1b
from segment_anything.records import MaskRecord, make_record
from segment_anything.visualize import contact_sheet, overlay

IMAGES = Path(__file__).parent / "images"


@dataclass(frozen=True)
class Photo:
    """A sample photograph, and what to point at in it, in pixels."""

    name: str
    click_xy: tuple[int, int]
    box_xyxy: tuple[int, int, int, int]
    click_on: str
    box_around: str


PHOTOS = (
    Photo("coffee", (290, 160), (75, 15, 480, 390), "the coffee", "cup and saucer"),
    Photo("astronaut", (165, 385), (276, 342, 511, 511), "the patch", "the helmet"),
    Photo("cat", (110, 140), (132, 82, 210, 152), "the cat", "an eye"),
    Photo("coins", (342, 185), (16, 230, 76, 290), "a coin", "another coin"),
)


EVERYTHING = {
    "pred_iou_thresh": 0.38,
    "stability_score_thresh": 0.65,
    "stability_score_offset": 0.5,
    "box_nms_thresh": 0.5,
}
"""Lower than the defaults, which suit the large published models: nano is seldom sure of a click."""


@dataclass(frozen=True)
class Answer:
    """What came of one question about one photograph."""

    photo: Photo
    asked: str
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    picture: np.ndarray
    """The same with the answer drawn in, perhaps larger."""
    records: Sequence[MaskRecord]
    milliseconds: float
    peak_memory_mib: float

    @property
    def predicted_iou(self) -> str:
        """The mean over all masks."""
        return f"{np.mean([record['predicted_iou'] for record in self.records]):.2f}" if self.records else "-"

    def as_json(self) -> dict[str, Any]:
        """Plain values: SA-1B's form, with what was asked and what it cost."""
        number, name = PHOTOS.index(self.photo), f"{self.photo.name}.jpg"
        document = to_sa1b(self.records, image_id=number, file_name=name, size_hw=self.image.shape[:2])
        costs = {"milliseconds": round(self.milliseconds, 1), "peak_memory_mib": round(self.peak_memory_mib, 1)}
        return {"asked": self.asked, **document, **costs}


def ask_all(sam: Sam, photo: Photo, points_per_side: int) -> Iterator[Answer]:
    """A click, a box and everything, on one photograph."""
    image = read_image(IMAGES / f"{photo.name}.jpg")
    scale = max(1.0, 1000 / max(image.shape[:2]))  # small photographs get pictures with fine outlines
    predictor = SamPredictor(sam)
    _, milliseconds, peak = measured(lambda: predictor.set_image(image))
    yield Answer(photo, "embedding", image, image, [], milliseconds, peak)

    def click() -> list[MaskRecord]:
        masks, scores, _ = predictor.predict(np.array([photo.click_xy]), np.array([1]))
        return [make_record(masks[scores.argmax()], predicted_iou=float(scores.max()))]

    records, milliseconds, peak = measured(click)
    picture = overlay(image, records, points_xy=[photo.click_xy], scale=scale)
    yield Answer(photo, f"click: {photo.click_on}", image, picture, records, milliseconds, peak)

    def box() -> list[MaskRecord]:
        masks, scores, _ = predictor.predict(box=np.array(photo.box_xyxy), multimask_output=False)
        return [make_record(masks[0], predicted_iou=float(scores[0]))]

    records, milliseconds, peak = measured(box)
    picture = overlay(image, records, boxes_xyxy=photo.box_xyxy, scale=scale)
    yield Answer(photo, f"box: {photo.box_around}", image, picture, records, milliseconds, peak)

    options: dict[str, Any] = {**EVERYTHING, "points_per_side": points_per_side, "output_mode": "coco_rle"}
    generator = SamAutomaticMaskGenerator(sam, **options)
    records, milliseconds, peak = measured(lambda: generator.generate(image))
    yield Answer(photo, "everything", image, overlay(image, records, scale=scale), records, milliseconds, peak)


def measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of `work`, its milliseconds, and the most memory this process held meanwhile, in MiB."""
    forget_peak_memory()
    start = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - start), peak_memory_mib()


def forget_peak_memory() -> None:
    """Let the peak start again from the present (Linux; elsewhere it is the peak since the process began)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mib() -> float:
    """Most memory this process has held, in MiB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano", help="nano (bundled), vit_t, vit_b, vit_l or vit_h")
    parser.add_argument("--checkpoint", help="other weights: a file, or 'random'")
    parser.add_argument("--points-per-side", type=int, default=16, help="grid of clicks for everything")
    parser.add_argument("--photos", type=int, default=len(PHOTOS), help="only the first so many")
    parser.add_argument("--out", type=Path, default=Path("out"))
    chosen = parser.parse_args(arguments)

    sam = load_sam(chosen.model, chosen.checkpoint)
    chosen.out.mkdir(parents=True, exist_ok=True)
    table = Table("image", "asked", "masks", "predicted IoU", "ms", "peak MiB", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    answers = []
    for photo in PHOTOS[: chosen.photos]:
        for answer in ask_all(sam, photo, chosen.points_per_side):
            costs = f"{answer.milliseconds:,.0f}", f"{answer.peak_memory_mib:,.0f}"
            if answer.asked == "embedding":
                table.add_row(photo.name, answer.asked, "", "", *costs)
                continue
            table.add_row("", answer.asked, str(len(answer.records)), answer.predicted_iou, *costs)
            kind = answer.asked.partition(":")[0]
            Image.fromarray(answer.picture).save(chosen.out / f"{photo.name}_{kind}.png")
            answers.append(answer)

    titles = [f"{answer.photo.name}, {answer.asked}" for answer in answers]
    sheet = contact_sheet([answer.picture for answer in answers], titles, columns=3, cell_px=480)
    Image.fromarray(sheet).save(chosen.out / "demo.png")
    (chosen.out / "records.json").write_text(json.dumps([answer.as_json() for answer in answers]))
    Console(highlight=False).print(table)
    print(f"Pictures and records are in {chosen.out}/; demo.png shows all.")


if __name__ == "__main__":
    main()
