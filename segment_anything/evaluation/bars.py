"""The bars that the bundled model must meet, measured on a folder of evaluation sets in one go.

Boxes are scored by the single mask; clicks by the best of three masks ("oracle") or by the one with the highest
predicted IoU ("top 1"), as `points_boxes.py` says. Objects smaller than `MIN_AREA_PX` original pixels are left out.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segment_anything.datasets import open_dataset
from segment_anything.evaluation.bsds import open_bsds
from segment_anything.evaluation.data import images_of
from segment_anything.evaluation.edges import Edges
from segment_anything.evaluation.options import ClickMasks, EdgeOptions, PointsBoxesOptions
from segment_anything.evaluation.pictures import draw_edges, draw_points_boxes
from segment_anything.evaluation.points_boxes import PointsBoxes
from segment_anything.evaluation.report import Provenance, table
from segment_anything.evaluation.reported import Draw, Track, run_reported
from segment_anything.evaluation.runs import Shard
from segment_anything.modeling import Sam

MIN_AREA_PX = 400
EDGE_IMAGES = 20
"""Photographs of BSDS500, evenly spaced in its test split, unless more are asked for."""
EDGE_THRESHOLDS = 19
"""Enough for the best F-measure to two digits; the full protocol has 99."""


@dataclass(frozen=True)
class Bar:
    """One figure, what it must reach, and what it should."""

    title: str
    data: str
    """Name of the folder."""
    value: str
    """Name of the figure in its protocol."""
    bar: float
    goal: float
    lower_is_better: bool = False

    def reached(self, value: float, level: float) -> bool:
        """Whether a figure is at least as good as a level."""
        return value <= level if self.lower_is_better else value >= level


BARS = (
    Bar("coco_nc, box, mIoU", "coco_nc", "box_truth_miou", 0.70, 0.75),
    Bar("coco_nc, 1 click, oracle of 3, mIoU", "coco_nc", "click1_oracle_miou", 0.50, 0.60),
    Bar("coco_nc, 5 clicks, top 1, mIoU", "coco_nc", "click5_miou", 0.70, 0.80),
    Bar("feral_cats, box, mIoU", "feral_cats", "box_truth_miou", 0.85, 0.90),
    Bar("dsb2018, box, mIoU", "dsb2018", "box_truth_miou", 0.80, 0.85),
    Bar("bsds500, edges, ODS", "bsds500", "ods", 0.60, 0.70),
    Bar("coco_nc, predicted IoU, mean absolute error", "coco_nc", "predicted_iou_mae", 0.12, 0.08, True),
)
"""The table; the order is that of printing."""

DATA = tuple(dict.fromkeys(bar.data for bar in BARS))


@dataclass(frozen=True)
class DataValues:
    """All figures of one data set."""

    data: str
    values: dict[str, float]
    skipped: tuple[str, ...] = ()
    missing: int = 0
    """Images that other shards have still to measure."""


def measure_bars(
    sam: Sam,
    folder: str | Path,
    *,
    data: Sequence[str] = DATA,
    edge_images: int = EDGE_IMAGES,
    limit: int | None = None,
    max_objects: int | None = None,
    seed: int = 0,
    click_masks: ClickMasks = "three",
    out: Path | None = None,
    shard: Shard | None = None,
    track: Track = lambda items: items,
) -> Iterator[DataValues]:
    """Measure every data set that is there, one after the other.

    Args:
        sam: the model.
        folder: holds one folder for each data set.
        data: names of the sets to measure, of `DATA`.
        edge_images: photographs of BSDS500; 200 is all.
        limit: the first so many images of each set only, for a quick look.
        max_objects: of each image only this many, drawn at random, for a quick look.
        seed: of all that is drawn at random.
        click_masks: see `PointsBoxesOptions`.
        out: each set leaves its rows and its report in a folder of its own there, and goes on where it stopped.
        shard: the part of the images to measure here.
        track: wraps each loop, for a progress bar.

    Raises:
        ValueError: if a name is unknown, or none of the sets is there.
    """
    unknown = [name for name in data if name not in DATA]
    if unknown:
        raise ValueError(f"data must be of {', '.join(DATA)}, got {unknown[0]!r}")
    present = [name for name in data if (Path(folder) / name).is_dir()]
    if not present:
        raise ValueError(f"{folder}: none of the folders {', '.join(data)} is there")
    for name in present:
        path = Path(folder) / name
        try:
            protocol, items, draw = _protocol(sam, path, edge_images, max_objects, seed, click_masks)
            home = None if out is None else out / name
            result = run_reported(
                protocol,
                items[:limit],
                sam=sam,
                data=name,
                seed=seed,
                out=home,
                shard=shard,
                track=track,
                draw=draw,
            )
        except ValueError as error:  # one damaged data set must not cost the figures of the others
            yield DataValues(name, {}, (f"{name}: {error}",))
        else:
            done = result.progress
            missing = done.total - len(done.rows) - len(done.skipped)
            yield DataValues(name, dict(result.report.values), done.skipped, missing)


def _protocol(
    sam: Sam, path: Path, edge_images: int, max_objects: int | None, seed: int, click_masks: ClickMasks
) -> tuple[Any, Sequence[Any], Draw]:
    """How one data set is measured, its images, and the pictures of its report."""
    if path.name == "bsds500":
        edges = Edges.of_model(sam, EdgeOptions(thresholds=EDGE_THRESHOLDS))
        return edges, _spread(open_bsds(path), edge_images), draw_edges
    options = PointsBoxesOptions(
        clicks=(1, 2, 3, 5) if path.name == "coco_nc" else (1,),
        boxes=("truth",),
        click_masks=click_masks,
        noc_limit=0,
        min_area_px=MIN_AREA_PX,
        max_objects=max_objects,
        seed=seed,
    )
    return PointsBoxes(sam, options), images_of(open_dataset(path)), draw_points_boxes


def _spread(items: Sequence[Any], count: int) -> Sequence[Any]:
    """`count` of the items, evenly spaced."""
    if count >= len(items):
        return items
    return [items[int((k + 0.5) * len(items) / count)] for k in range(count)]


BarRow = tuple[str, str, str, str, str]


def bar_rows(measured: Sequence[DataValues]) -> list[BarRow]:
    """(figure, value, bar, goal, verdict) of every bar; a dash where the data set was not measured."""
    values = {one.data: one.values for one in measured}
    rows = []
    for bar in BARS:
        value = values.get(bar.data, {}).get(bar.value)
        if value is None:
            text, verdict = "–", "not measured"
        else:
            text = f"{value:.3f}"
            verdict = "goal" if bar.reached(value, bar.goal) else "bar" if bar.reached(value, bar.bar) else "missed"
        rows.append((bar.title, text, f"{bar.bar:.2f}", f"{bar.goal:.2f}", verdict))
    return rows


@dataclass(frozen=True)
class BarsReport:
    """The table of the bars, all figures behind it, and where they come from."""

    rows: tuple[BarRow, ...]
    values: dict[str, dict[str, float]]
    """Of each data set."""
    incomplete: tuple[str, ...]
    """One line for each data set of which images are still missing."""
    skipped: tuple[str, ...]
    origin: Provenance

    def json(self) -> str:
        """All of it."""
        names = ("title", "value", "bar", "goal", "verdict")
        plain = asdict(self) | {"bars": [dict(zip(names, row, strict=True)) for row in self.rows]}
        del plain["rows"]
        return json.dumps(plain, indent=2)

    def markdown(self) -> str:
        """A title, the table, and the origin."""
        lines = [
            f"# bars: {self.origin.model} on {self.origin.data}",
            "",
            *table(("figure", "value", "bar", "goal", "verdict"), self.rows),
        ]
        for note in (*self.incomplete, *self.skipped):
            lines += ["", f"- {note}"]
        origin = [(name, str(value)) for name, value in asdict(self.origin).items()]
        return "\n".join([*lines, "", *table(("origin", ""), origin)]) + "\n"

    def write(self, folder: Path) -> None:
        """Write `bars.json` and `bars.md` into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bars.json").write_text(self.json(), encoding="utf-8")
        (folder / "bars.md").write_text(self.markdown(), encoding="utf-8")


def bars_report(measured: Sequence[DataValues], origin: Provenance) -> BarsReport:
    """The report on the data sets that were measured."""
    return BarsReport(
        tuple(bar_rows(measured)),
        {one.data: one.values for one in measured},
        tuple(
            f"{one.data}: {one.missing} images are still to come from other shards" for one in measured if one.missing
        ),
        tuple(line for one in measured for line in one.skipped),
        origin,
    )
