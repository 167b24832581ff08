"""Edges on BSDS500: soft edge maps -> ODS, OIS, AP, R50 (Segment Anything, section 7.2 and appendix D.2).

The maps come from the model (`edge_maps.py`) or, of any other edge detector, from a folder of grey PNGs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segment_anything.datasets import SampleError
from segment_anything.evaluation.bsds import BsdsImage
from segment_anything.evaluation.edge_maps import edge_map
from segment_anything.evaluation.edge_scores import (
    EdgeCounts,
    count_soft_edges,
    default_thresholds,
    score_edges,
)
from segment_anything.evaluation.interact import weights_of
from segment_anything.evaluation.options import EdgeMapOptions, EdgeOptions
from segment_anything.evaluation.runs import Row, Value, median_times
from segment_anything.modeling import Sam

Floats = NDArray[np.float64]


class Edges:
    """The protocol (see `runs.EvaluationProtocol`)."""

    name = "edges"

    def __init__(
        self,
        source: Callable[[BsdsImage, NDArray[np.uint8]], Floats],
        origin: Mapping[str, Any],
        options: EdgeOptions | None = None,
    ) -> None:
        """Score the edge maps that `source` gives; `origin` says where they come from, for the report."""
        self.source = source
        self.origin = origin
        self.options = options or EdgeOptions()

    @classmethod
    def of_model(cls, sam: Sam, options: EdgeOptions | None = None, maps: EdgeMapOptions | None = None) -> "Edges":
        """Score the edges that a model finds."""
        chosen = maps or EdgeMapOptions()
        origin = {"weights": weights_of(sam), **asdict(chosen)}
        return cls(lambda _, image: edge_map(sam, image, chosen), origin, options)

    @classmethod
    def of_folder(cls, folder: str | Path, options: EdgeOptions | None = None) -> "Edges":
        """Score edge maps made before: `<number>.png`, grey, bright edges.

        Raises:
            ValueError: if there is no such folder.
        """
        root = Path(folder)
        if not root.is_dir():
            raise ValueError(f"{root}: no folder with edge maps there")
        return cls(
            lambda item, image: read_edge_map(root / f"{item.name}.png", image.shape[:2]), {"maps": str(root)}, options
        )

    def settings(self) -> Mapping[str, Any]:
        """Options and where the maps come from."""
        return {**asdict(self.options), **self.origin}

    def measure(self, item: BsdsImage) -> Row:
        """Counts of matched pixels at every threshold, and the time that the map took."""
        image, truth = item.read()
        started = perf_counter()
        edges = self.source(item, image)
        seconds = perf_counter() - started
        levels = default_thresholds(self.options.thresholds)
        counts = count_soft_edges(edges, truth.boundaries, levels, self.options.tolerance)
        row: Row = {name: values.tolist() for name, values in asdict(counts).items()}
        return {**row, "map_ms": seconds * 1e3} if "weights" in self.origin else row

    def values(self, rows: Sequence[Row]) -> Iterator[Value]:
        """The benchmark's figures."""
        yield "images", len(rows)
        if rows:
            scores = score_edges(counts_of(rows), default_thresholds(self.options.thresholds))
            yield from asdict(scores).items()
            yield from median_times(rows, "map_ms")


def counts_of(rows: Sequence[Row]) -> list[EdgeCounts]:
    """The counts of each row."""
    names = ("recall_hits", "recall_total", "precision_hits", "precision_total")
    return [EdgeCounts(*(np.asarray(row[name], np.int64) for name in names)) for row in rows]


def read_edge_map(path: Path, size_hw: tuple[int, ...]) -> Floats:
    """A grey PNG as (H, W) float64 in [0, 1].

    Raises:
        SampleError: if it is missing, no image, or of another size.
    """
    try:
        with PillowImage.open(path) as image:
            edges = np.asarray(image.convert("L"), np.float64) / 255
    except (OSError, SyntaxError) as error:
        raise SampleError(f"{path}: no edge map can be read ({error})") from error
    if edges.shape != tuple(size_hw):
        raise SampleError(
            f"{path}: the edge map is {edges.shape[1]} x {edges.shape[0]} pixels, "
            f"the photograph {size_hw[1]} x {size_hw[0]}"
        )
    return edges
