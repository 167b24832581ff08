"""The paper's text recipe: crops of objects as prompts, then points; the loop trains it, and words take over."""

import numpy as np
import pytest
import torch
from colour_encoder import COLOURS, ColourEncoder
from toy import toy_sam

from segment_anything.datasets import SegmentationSample
from segment_anything.masks import mask_iou
from segment_anything.modeling.text_prompt import text_projection
from segment_anything.text.prompting import TextPrompter
from segment_anything.training.loop import Loop
from segment_anything.training.options import LoopOptions
from segment_anything.training.text import TextOptions, TextSource, TextTask, cut_objects

SMALL = TextOptions(min_area_px=50, rounds=3, attend_inside=False)


def squares(number):
    """A red and a blue square on grey, whose places depend on the number."""
    image, masks = np.full((64, 64, 3), 128, np.uint8), np.zeros((2, 64, 64), bool)
    places = np.random.default_rng(number).permutation([4, 36])
    for mask, colour, left in zip(masks, ("red", "blue"), places, strict=True):
        mask[20:44, left : left + 24] = True
        image[mask] = COLOURS[colour]
    return SegmentationSample(image, masks, np.zeros(2, np.int64), f"squares {number}")


def task(count=4, options=SMALL, **others):
    return TextTask(toy_sam(), ColourEncoder(), [squares(i) for i in range(count)], [squares(99)], options, **others)


def test_small_objects_are_left_out_and_large_ones_cut_out_square():
    sample = squares(0)
    masks = np.concatenate([sample.masks, np.zeros((1, 64, 64), bool)])
    masks[2, 0, :5] = True
    sample = SegmentationSample(sample.image, masks, np.zeros(3, np.int64), "three")
    cut = cut_objects(sample, SMALL, np.random.default_rng(0))
    assert len(cut.masks) == len(cut.crops) == 2
    for crop in cut.crops:
        assert crop.image.shape == (*crop.mask.shape, 3)
        assert 24 <= crop.mask.shape[0] == crop.mask.shape[1] <= 48  # the box, expanded 1 to 2 times
        assert crop.mask.sum() == 24 * 24


def test_the_chance_of_masking_and_the_factor_are_obeyed():
    sample = squares(0)
    always = TextOptions(min_area_px=50, masked=1.0, expand=(2.0, 2.0))
    crop, _ = cut_objects(sample, always, np.random.default_rng(0)).crops
    assert crop.mask.shape == (48, 48)
    assert (crop.image[~crop.mask] == 0).all()
    never = TextOptions(min_area_px=50, masked=0.0, expand=(2.0, 2.0))
    crop, _ = cut_objects(sample, never, np.random.default_rng(0)).crops
    assert (crop.image[~crop.mask] != 0).any()


def test_the_papers_limit_of_a_hundred_pixels_is_the_default():
    assert TextOptions().min_area_px == 10_000
    assert len(cut_objects(squares(0), TextOptions(), np.random.default_rng(0)).masks) == 0


def test_at_most_max_objects_are_drawn():
    options = TextOptions(min_area_px=50, max_objects=1)
    first = [int(cut_objects(squares(0), options, np.random.default_rng(i)).masks[0, 30, 10]) for i in range(20)]
    assert 0 < sum(first) < 20


def test_what_is_drawn_depends_only_on_seed_epoch_and_index():
    source = TextSource([squares(0), squares(1)], SMALL, None)
    a, b, c = source.load(1, epoch=3), source.load(1, epoch=3), source.load(1, epoch=4)
    assert a.seed == b.seed != c.seed
    for x, y in zip(a.crops, b.crops, strict=True):
        np.testing.assert_array_equal(x.image, y.image)
    assert any(x.image.shape != y.image.shape for x, y in zip(a.crops, c.crops, strict=True))


def test_learning_gives_gradients_to_the_projection_the_decoder_and_the_encoder():
    it = task()
    learned = it.learn([it.source.load(0, 0), it.source.load(1, 0)])
    assert learned.weight == 4
    assert learned.sums["loss"] > 0
    assert text_projection(it.sam.prompt_encoder).linear.weight.grad.abs().sum() > 0
    assert it.sam.mask_decoder.mask_tokens.weight.grad.abs().sum() > 0
    assert it.sam.image_encoder.patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_frozen_image_encoder_gets_none():
    it = task(options=TextOptions(min_area_px=50, rounds=2, attend_inside=False, train_image_encoder=False))
    it.learn([it.source.load(0, 0)])
    assert all(p.grad is None for p in it.sam.image_encoder.parameters())
    assert text_projection(it.sam.prompt_encoder).linear.weight.grad is not None


def test_gradients_are_sums_so_two_images_add_up():
    together, apart = task(), task()
    apart.sam.load_state_dict(together.sam.state_dict())
    samples = [together.source.load(i, 0) for i in range(2)]
    together.learn(samples)
    for sample in samples:
        apart.learn([sample])
    a, b = (text_projection(t.sam.prompt_encoder).linear.weight.grad for t in (together, apart))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_images_without_large_objects_teach_nothing_and_do_not_fail():
    it = task(options=TextOptions(rounds=2))
    learned = it.learn([it.source.load(0, 0)])
    assert learned.weight == 0
    assert it.learn([]).weight == 0
    assert it.validate()["score"] == 0


def test_after_training_a_word_selects_its_square(tmp_path):
    torch.manual_seed(0)
    it = task(count=32, options=TextOptions(min_area_px=50, rounds=1, attend_inside=False))
    options = LoopOptions(
        epochs=14,
        batch_size=4,
        lr=3e-3,
        weight_decay=0.0,
        layer_decay=1.0,
        schedule="cosine",
        tensorboard=False,
        progress=False,
    )
    outcome = Loop(it, options, tmp_path).run()
    assert outcome.history[-1]["valid_iou_text"] > 0.5 > outcome.history[0]["valid_iou_text"]
    prompter = TextPrompter(it.sam.eval(), ColourEncoder())
    sides = set()
    for held_out in map(squares, range(100, 108)):  # the same mask for both words is right for neither
        found = prompter.decode(it.sam.encode(held_out.image), ["red", "blue"]).best().masks()[:, 0].numpy()
        overlaps = mask_iou(found, held_out.masks)
        assert np.diag(overlaps).min() > 0.5 > overlaps[[0, 1], [1, 0]].max()
        sides.add(bool(held_out.masks[0, :, :32].any()))
    assert sides == {True, False}  # the place does not tell which is meant


def test_options_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=r"expand must be \(low, high\) with 1 <= low <= high; got \(2, 1\)"):
        TextOptions(expand=(2, 1))
    with pytest.raises(ValueError, match=r"masked must be a chance between 0 and 1; got 2"):
        TextOptions(masked=2)
    with pytest.raises(ValueError, match=r"rounds must be at least 1; got 0"):
        TextOptions(rounds=0)
    with pytest.raises(ValueError, match=r"train must hold at least one image; got none"):
        TextTask(toy_sam(), ColourEncoder(), [], [])
