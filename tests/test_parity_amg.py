"""Automatic masks equal those of the original package on the small network of the parity files.

Scores closer than rounding may change places, so records are paired by the click and the crop that made them, and the
ranking is compared apart from them.
"""

from pathlib import Path

import numpy as np
import parity
import pytest

pytestmark = pytest.mark.shared


@pytest.mark.parametrize("run", parity.AMG_OPTIONS)
def test_records_are_those_of_the_original(shared: Path, run: str) -> None:
    expected = {name: value for name, value in parity.load("small").items() if name.startswith(f"{run}.")}
    ours = parity.automatic_masks(parity.parity_model("small"), parity.photo(), run)
    assert np.abs(ours[f"{run}.iou"] - expected[f"{run}.iou"]).max() < parity.TIE  # the same ranking, ties apart
    compared = list(parity.deviations(ours, expected, image_px=1200 * 1800))
    assert len(compared) == len(expected)
    assert [item for item in compared if not item.is_allowed] == []
