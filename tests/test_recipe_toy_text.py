"""The toy run of the text recipe: what it may see in training, what it measures, and that it learns."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from segment_anything.modeling.text_prompt import attach_text

FILE = Path(__file__).resolve().parent.parent / "recipes" / "toy_text.py"


@pytest.fixture(scope="module")
def toy_text():
    spec = importlib.util.spec_from_file_location("toy_text", FILE)
    module = sys.modules["toy_text"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["toy_text"]


def test_no_combination_that_counts_is_in_the_pictures_of_training(toy_text):
    rng = np.random.default_rng(0)
    for draw in (toy_text.draw_combinations, toy_text.draw_pair):
        drawn = {c for target in toy_text.SEEN for _ in range(30) for c in draw(target, rng)}
        assert drawn == set(toy_text.SEEN)
        assert not drawn & set(toy_text.HELD_OUT)
    assert set(toy_text.draw_crops(toy_text.SEEN, rng)[1].tolist()) == set(range(len(toy_text.SEEN)))
    assert len(toy_text.SEEN) + len(toy_text.HELD_OUT) == 72


def test_every_colour_and_every_shape_that_counts_is_seen_in_other_combinations(toy_text):
    colours, shapes = (set(words) for words in zip(*toy_text.SEEN, strict=True))
    assert {colour for colour, _ in toy_text.HELD_OUT} <= colours
    assert {shape for _, shape in toy_text.HELD_OUT} <= shapes


def test_a_picture_shows_the_named_object_among_one_of_its_colour_and_one_of_its_shape(toy_text):
    rng = np.random.default_rng(1)
    for target in toy_text.HELD_OUT:
        combinations = toy_text.draw_combinations(target, rng, among=toy_text.ALL)
        assert combinations[0] == target
        assert [c[0] == target[0] for c in combinations[1:3]] == [True, False]
        assert [c[1] == target[1] for c in combinations[1:3]] == [False, True]
        image, masks = toy_text.picture(combinations, rng)
        assert masks.sum(axis=0).max() == 1  # no object lies on another
        for mask, (colour, _) in zip(masks, combinations, strict=True):
            distance = {name: np.abs(image[mask].mean(axis=0) - rgb).sum() for name, rgb in toy_text.COLOURS.items()}
            assert min(distance, key=distance.get) == colour


def test_a_caption_is_the_sum_of_its_words_and_others_are_ignored(toy_text):
    clip = toy_text.TinyClip()
    red, bar, both = clip.encode_text(["red", "a bar.", "a red bar"])
    torch.testing.assert_close(red + bar, both)
    assert clip.encode_text(["something"]).abs().sum() == 0


def test_a_network_that_learned_nothing_does_not_hit(toy_text):
    torch.manual_seed(0)
    clip, sam = toy_text.TinyClip(), toy_text.tiny_sam()
    attach_text(sam.prompt_encoder, 48)
    with torch.inference_mode():
        found = toy_text.hit_rate(sam.eval(), clip, toy_text.HELD_OUT, np.random.default_rng(0), times=1)
    assert found["hit_rate"] < 0.2
