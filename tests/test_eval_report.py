"""Reports: JSON, Markdown, plots, and where figures come from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything.evaluation.metrics import calibration
from segment_anything.evaluation.plots import mean_curve, plot_clicks, plot_precision_recall, plot_reliability
from segment_anything.evaluation.report import Provenance, Report, number, provenance, table

ORIGIN = Provenance("0123abc", "nano", "fe12", "cats", "a computer", "2.13", "2026-01-02T03:04:05+00:00", 7)


def test_json_holds_figures_settings_and_origin() -> None:
    report = Report("points-boxes", {"images": 2, "miou": 0.5, "none": float("nan")}, ORIGIN, {"clicks": [1, 2]})
    content = json.loads(report.json())
    assert content["values"] == {"images": 2, "miou": 0.5, "none": None}
    assert content["settings"] == {"clicks": [1, 2]}
    assert content["provenance"]["seed"] == 7
    assert content["provenance"]["weights"] == "fe12"


def test_markdown_shows_what_is_missing_and_what_was_skipped() -> None:
    text = Report("edges", {"images": 3, "ods": 0.61234}, ORIGIN, {}, ["7.jpg: damaged"], 10).markdown()
    assert text.startswith("# edges: nano on cats\n")
    assert "Incomplete: 4 of 10 images." in text
    assert "| ods | 0.6123 |" in text
    assert "- 7.jpg: damaged" in text


def test_report_is_written_into_a_new_folder(tmp_path: Path) -> None:
    files = Report("edges", {"ods": 0.5}, ORIGIN).write(tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["edges.json", "edges.md"]
    assert json.loads(files[0].read_text())["values"] == {"ods": 0.5}


def test_numbers_are_counts_or_have_four_digits() -> None:
    assert [number(value) for value in (120, 0.5, 1.0, float("nan"))] == ["120", "0.5000", "1.0000", "–"]


def test_table_keeps_a_bar_inside_a_cell() -> None:
    assert table(("a",), [("x|y",)])[-1] == "| x\\|y |"


def test_provenance_names_commit_hardware_and_date() -> None:
    origin = provenance(model="nano", weights="fe12", data="cats", seed=1)
    assert origin.commit
    assert f"{torch.get_num_threads()} threads" in origin.hardware
    assert origin.torch == torch.__version__
    assert origin.date.endswith("+00:00")


def test_mean_curve_keeps_the_last_value_of_objects_that_needed_fewer_clicks() -> None:
    assert mean_curve([[0.2, 0.6], [1.0]], 3).tolist() == pytest.approx([0.6, 0.8, 0.8])


def test_plots_are_pictures_and_equal_for_equal_figures(tmp_path: Path) -> None:
    trust = calibration(np.array([0.9, 0.5]), np.array([0.8, 0.6]))

    def draw(folder: Path) -> list[Path]:
        return [
            plot_clicks({"top 1": np.array([0.4, 0.7])}, folder / "clicks.png"),
            plot_precision_recall(
                {"edges": (np.array([0.2, 0.8]), np.array([0.9, 0.3]))}, folder / "pr.png", (0.5, 0.5)
            ),
            plot_reliability(trust, folder / "reliability.png"),
        ]

    for one, other in zip(draw(tmp_path / "a"), draw(tmp_path / "b"), strict=True):
        assert one.read_bytes() == other.read_bytes()
        with Image.open(one) as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10
