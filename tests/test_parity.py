"""The networks answer like the published ones: every entry of the parity files, within the tolerances beside them.

Automatic masks of the small network are in test_parity_amg.py; `python tests/parity.py` writes all deviations to
docs/parity.md.
"""

from functools import cache
from pathlib import Path

import numpy as np
import parity
import pytest
from parity import MODELS, SMALL_ANSWERS, SMALL_QUESTIONS, Values

PROMPTS = [
    f"{name}.{many}" for name in ("one_point", "three_points", "box", "points_and_box") for many in ("multi", "single")
]
QUESTIONS = ["embedding", *PROMPTS, "refine", "boxes3", "prompt", "onnx_wrapper"]
"""What the entries of a parity file begin with, automatic masks apart."""


@cache
def answered(model: str) -> tuple[Values, Values]:
    """Our answers and the published ones; the image is encoded once a test run."""
    expected = parity.load(model)
    predictor = parity.predictor_on(model, parity.photo())
    ours = parity.embedding_answers(predictor) | parity.prompt_answers(predictor, expected)
    ours |= parity.prompt_encoder_answers(predictor, expected)
    if "onnx_wrapper.masks" in expected and parity.has_onnx_wrapper():
        ours |= parity.onnx_wrapper_answers(predictor, expected)
    return ours, expected


def begins(entries: Values, question: str) -> Values:
    return {name: value for name, value in entries.items() if name.startswith(question) and name not in parity.GIVEN}


@pytest.mark.shared
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=[pytest.mark.slow] if name == "vit_b" else []) for name in MODELS]
)
def test_the_network_answers_like_the_published_one(shared: Path, model: str, question: str) -> None:
    ours, expected = answered(model)
    wanted = begins(expected, question)
    if question == "onnx_wrapper" and (not wanted or not parity.has_onnx_wrapper()):
        pytest.skip("the file has no such entry, or the package no ONNX wrapper yet")
    assert wanted
    assert set(wanted) <= set(ours)
    too_far = [item for item in parity.deviations(ours, wanted, image_px=1200 * 1800) if not item.is_allowed]
    assert too_far == []


def test_the_small_network_answers_as_when_parity_was_shown() -> None:
    with np.load(SMALL_ANSWERS) as file:
        expected = dict(file)
    ours = parity.small_answers()
    assert set(ours) == set(expected)
    compared = list(parity.deviations(ours, expected, image_px=96 * 128))
    assert len(compared) == len(expected)
    assert [item for item in compared if not item.is_allowed] == []


def test_the_comparison_sees_a_deviation_above_the_tolerance() -> None:
    with np.load(SMALL_ANSWERS) as file:
        expected = dict(file)
    wrong = dict(expected)
    wrong["box.multi.low_res"] = expected["box.multi.low_res"] + 0.002 * expected["box.multi.low_res"].std()
    wrong["refine.mask_index"] = expected["refine.mask_index"] + 1
    wrong["box.single.area"] = expected["box.single.area"] + 20
    above = [item.entry for item in parity.deviations(wrong, expected, image_px=96 * 128) if not item.is_allowed]
    assert sorted(above) == ["box.multi.low_res", "box.single.area", "refine.mask_index"]
    assert SMALL_QUESTIONS.keys() == set(parity.GIVEN)


@pytest.mark.shared
@pytest.mark.parametrize("model", MODELS)
def test_the_table_in_the_docs_has_every_entry(shared: Path, model: str) -> None:
    text = (parity.ROOT / "docs" / "parity.md").read_text()
    section = text.split(f"## {model}.npz")[1].split("\n## ")[0]
    listed = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    assert listed[1:] == list(parity.load(model))
    assert "**above**" not in section
