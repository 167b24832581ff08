"""Automatic masks equal those of the original package on the toy network of the parity files.

Scores closer than rounding may change places, so the check pairs records by the click and the crop that made them and
allows a swap only between neighbours whose predicted IoU differs by less than the tolerance.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filled import filled
from toy import parity_sam

from segment_anything import SamAutomaticMaskGenerator, read_image

TIE = 1e-3
"""Predicted IoUs closer than this count as tied: the parity tolerance for logits and IoU."""

pytestmark = pytest.mark.shared


def generate(shared: Path, **options: Any) -> list[Any]:
    sam = parity_sam()
    sam.load_state_dict(filled(sam.state_dict()))
    generator = SamAutomaticMaskGenerator(
        sam,
        pred_iou_thresh=-99,
        stability_score_thresh=0.2,
        stability_score_offset=0.2,
        box_nms_thresh=1.0,
        output_mode="coco_rle",
        **options,
    )
    return generator.generate(read_image(shared / "images" / "truck.jpg"))


def columns(records: list[Any]) -> dict[str, np.ndarray]:
    """The records as the parity file keeps them."""
    keys = {
        "bbox": "bbox",
        "area": "area",
        "iou": "predicted_iou",
        "stability": "stability_score",
        "point": "point_coords",
        "crop": "crop_box",
    }
    return {name: np.array([record[key] for record in records]).squeeze() for name, key in keys.items()}


@pytest.mark.parametrize(
    ("entry", "options"),
    [
        ("amg", {"points_per_side": 8}),
        (
            "amg_crops",
            {
                "points_per_side": 6,
                "crop_nms_thresh": 1.0,
                "crop_n_layers": 1,
                "crop_n_points_downscale_factor": 2,
            },
        ),
    ],
)
def test_records_are_those_of_the_original(shared: Path, entry: str, options: dict[str, Any]) -> None:
    with np.load(shared / "parity" / "small.npz") as file:
        expected = {name: file[f"{entry}.{name}"] for name in ("bbox", "area", "iou", "stability", "point", "crop")}
    ours = columns(generate(shared, **options))
    assert len(ours["iou"]) == len(expected["iou"])
    order = matched(ours, expected)
    assert np.abs(ours["iou"] - expected["iou"]).max() < TIE  # the same ranking, ties apart
    assert np.abs(ours["iou"][order] - expected["iou"]).max() < TIE
    assert np.abs(ours["stability"][order] - expected["stability"]).max() < 1e-3
    assert np.abs(ours["area"][order] - expected["area"]).max() < 0.001 * 1200 * 1800
    assert np.abs(ours["bbox"][order] - expected["bbox"]).max() <= 1
    assert np.allclose(ours["point"][order], expected["point"])
    assert np.array_equal(ours["crop"][order], expected["crop"])


def matched(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[int]:
    """For each expected record the place of ours from the same click and crop, with the closest predicted IoU."""
    free = set(range(len(ours["iou"])))
    order = []
    for i, iou in enumerate(expected["iou"]):
        same = [
            j
            for j in free
            if np.allclose(ours["point"][j], expected["point"][i])
            and np.array_equal(ours["crop"][j], expected["crop"][i])
        ]
        assert same, f"no record of ours comes from the click {expected['point'][i]} in crop {expected['crop'][i]}"
        order.append(min(same, key=lambda j: abs(float(ours["iou"][j] - iou))))
        free.remove(order[-1])
    return order
