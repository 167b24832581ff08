"""Masks ranked by phrases and named by labels."""

import warnings

import numpy as np
import pytest
from colour_encoder import ColourEncoder, coloured_squares

from segment_anything.masks import encode_rle
from segment_anything.text import (
    Calibration,
    RelationWarning,
    ScorerOptions,
    TextScorer,
    apply_style,
    check_phrases,
    fit_calibration,
    label_records,
    rank_records,
    square_crop,
    warn_of_relations,
)
from segment_anything.text.calibration import best_cutoff


def test_a_phrase_ranks_its_mask_first():
    image, records = coloured_squares("green", "red", "blue")
    ranked = rank_records(records, image, "a red thing", TextScorer(ColourEncoder()), min_score=0.0)
    assert ranked[0]["bbox"] == records[1]["bbox"]
    assert [r["category"] for r in ranked] == ["a red thing"] * 3
    scores = [r["category_score"] for r in ranked]
    assert scores == sorted(scores, reverse=True)


def test_the_cut_off_drops_masks_of_other_things():
    image, records = coloured_squares("green", "red", "blue")
    (only,) = rank_records(records, image, "red", TextScorer(ColourEncoder()))
    assert only["bbox"] == records[1]["bbox"]


def test_a_phrase_that_fits_nothing_gives_an_empty_list():
    image, records = coloured_squares("green", "blue")
    assert rank_records(records, image, "red", TextScorer(ColourEncoder())) == []
    assert rank_records([], image, "red", TextScorer(ColourEncoder())) == []


def test_several_phrases_each_take_their_masks():
    image, records = coloured_squares("green", "red", "blue")
    ranked = rank_records(records, image, ["red", "blue"], TextScorer(ColourEncoder()))
    assert {(r["category"], r["bbox"][0]) for r in ranked} == {("red", 28), ("blue", 52)}
    assert len(rank_records(records, image, ["red", "blue"], TextScorer(ColourEncoder()), max_count=1)) == 1


def test_labels_add_two_keys_and_leave_the_others_alone():
    image, records = coloured_squares("blue", "red")
    before = [dict(record) for record in records]
    labelled = label_records(records, image, ["red", "blue", "green"], TextScorer(ColourEncoder()))
    assert [r["category"] for r in labelled] == ["blue", "red"]
    assert all(0.5 < r["category_score"] <= 1 for r in labelled)
    assert all(labelled[i].keys() - before[i].keys() == {"category", "category_score"} for i in range(2))
    assert all(records[i].keys() == before[i].keys() for i in range(2))


def test_label_scores_are_shares_of_one():
    image, records = coloured_squares("blue", "red")
    shares = TextScorer(ColourEncoder()).choices(image, records, ["red", "blue", "green"])
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)


def test_masks_given_as_run_lengths_are_the_same_masks():
    image, records = coloured_squares("blue", "red")
    encoded = [{**record, "segmentation": encode_rle(record["segmentation"])} for record in records]
    scorer = TextScorer(ColourEncoder())
    np.testing.assert_array_equal(
        scorer.similarities(image, records, ["red"]), scorer.similarities(image, encoded, ["red"])
    )


def test_the_vectors_of_an_image_are_made_once_and_in_batches():
    image, records = coloured_squares("green", "red", "blue")
    encoder = ColourEncoder()
    scorer = TextScorer(encoder, ScorerOptions(batch_size=4))
    first = scorer.scores(image, records, ["red"])
    assert encoder.image_calls == [4, 4, 1]  # three masks in three styles
    again = scorer.scores(image, records, ["red"])
    scorer.scores(image, records, ["blue"])
    assert encoder.image_calls == [4, 4, 1]
    np.testing.assert_array_equal(first, again)
    scorer.scores(image, records[:1], ["red"])
    assert encoder.image_calls == [4, 4, 1, 3]


def test_the_batch_size_does_not_change_the_answer():
    image, records = coloured_squares("green", "red", "blue")
    one, many = (TextScorer(ColourEncoder(), ScorerOptions(batch_size=size)) for size in (1, 100))
    np.testing.assert_allclose(one.scores(image, records, ["red"]), many.scores(image, records, ["red"]), rtol=1e-5)


def test_a_phrase_is_encoded_once_in_every_template():
    encoder = ColourEncoder()
    scorer = TextScorer(encoder, ScorerOptions(templates=("{}", "a {}.")))
    scorer.text_vectors(["red", "blue", "red"])
    scorer.text_vectors(["blue"])
    assert encoder.text_calls == [4]


def test_an_encoder_with_a_bias_is_read_as_a_sigmoid():
    class Sigmoid(ColourEncoder):
        logit_scale = 10.0
        logit_bias = -5.0

    image, records = coloured_squares("red")
    scorer = TextScorer(Sigmoid(), ScorerOptions(styles=("box",), templates=("{}",), expand=1.0))
    (cosine,) = scorer.similarities(image, records, ["red"])[0]
    expected = 1 / (1 + np.exp(-(10 * cosine - 5)))
    assert scorer.scores(image, records, ["red"])[0, 0] == pytest.approx(expected, rel=1e-5)


def test_without_a_bias_the_score_is_a_softmax_against_the_background():
    image, records = coloured_squares("red")
    scorer = TextScorer(ColourEncoder(), ScorerOptions(background=("something", "a wall")))
    cosines = scorer.similarities(image, records, ["red", "something", "a wall"])[0]
    weights = np.exp(20 * cosines)
    assert scorer.scores(image, records, ["red"])[0, 0] == pytest.approx(weights[0] / weights.sum(), rel=1e-4)


def test_a_crop_is_a_square_around_the_box_that_never_stretches():
    image = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    mask = np.zeros((8, 12), bool)
    mask[0:2, 2:10] = True
    crop = square_crop(image, mask, (2, 0, 10, 2), expand=1.0)
    assert crop.image.shape == (8, 8, 3)
    np.testing.assert_array_equal(crop.image[3:5], image[0:2, 2:10])
    assert ["".join(".#"[int(v)] for v in row) for row in crop.mask] == ["." * 8] * 3 + ["#" * 8] * 2 + ["." * 8] * 3


def test_the_styles_change_only_what_is_outside_the_mask():
    image, (record,) = coloured_squares("red")
    x, y, w, h = record["bbox"]
    crop = square_crop(image, record["segmentation"], (x, y, x + w, y + h), expand=1.5)
    for style in ("box", "blurred", "masked"):
        np.testing.assert_array_equal(apply_style(crop, style)[crop.mask], crop.image[crop.mask])
    assert (apply_style(crop, "masked", fill=(1, 2, 3))[~crop.mask] == (1, 2, 3)).all()
    assert (apply_style(crop, "blurred")[~crop.mask] != crop.image[~crop.mask]).any()


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match=r"styles must be some of box, blurred, masked; got \('round',\)"):
        ScorerOptions(styles=("round",))


def test_an_empty_phrase_is_refused():
    for phrase in ("", "   ", "...", None):
        with pytest.raises(ValueError, match=r'phrase must be a word or a few, such as "a red car"; got'):
            check_phrases([phrase])
    with pytest.raises(ValueError, match=r"labels must hold at least one phrase; got an empty list"):
        label_records([], *coloured_squares("red")[:1], [], TextScorer(ColourEncoder()))


def test_a_label_given_twice_is_refused():
    image, records = coloured_squares("red")
    with pytest.raises(ValueError, match=r"labels must be different; 'red' is there twice"):
        label_records(records, image, ["red", "blue", "red"], TextScorer(ColourEncoder()))


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("the second dog from the left", "second, left"),
        ("the largest car", "largest"),
        ("a cup next to the plate", "next to"),
        ("everything except the sky", "except"),
    ],
)
def test_a_phrase_with_a_relation_is_warned_about(phrase, words):
    with pytest.warns(RelationWarning, match=rf"speaks of a relation \({words}\).*not understood"):
        warn_of_relations([phrase])


@pytest.mark.parametrize("phrase", ["a laptop", "a tank top", "a first aid kit", "underwear", "a brightly lit room"])
def test_a_phrase_without_a_relation_is_not(phrase):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_relations([phrase])
    assert caught == []


def test_a_template_without_a_place_is_refused():
    with pytest.raises(ValueError, match=r'templates: each must hold \{\} where the phrase goes; got "a photo"'):
        ScorerOptions(templates=("a photo",))


def test_an_object_that_is_no_encoder_is_refused():
    with pytest.raises(ValueError, match=r"encoder must have encode_text\(texts\) and encode_image\(images\); got str"):
        TextScorer("openai/clip-vit-base-patch32")


def test_a_mask_of_another_image_is_refused():
    image, records = coloured_squares("red")
    with pytest.raises(ValueError, match=r"a mask of 24 x 24 pixels does not belong to an image of 10 x 24"):
        TextScorer(ColourEncoder()).scores(image[:, :10], records, ["red"])


def test_calibration_finds_the_curve_that_made_the_examples():
    generator = np.random.default_rng(0)
    margins = generator.normal(size=4000) * 3
    truth = Calibration(slope=1.5, offset=-2.0)
    fitted = fit_calibration(margins, generator.random(4000) < truth.probability(margins), ridge=0.0)
    assert fitted.slope == pytest.approx(1.5, rel=0.1)
    assert fitted.offset == pytest.approx(-2.0, rel=0.1)


def test_examples_that_separate_give_a_finite_curve_and_a_cut_between_them():
    fitted = fit_calibration([-3, -2, -1, 1, 2, 3], [0, 0, 0, 1, 1, 1])
    low, high = fitted.probability(np.array([-1.0, 1.0]))
    assert low < fitted.cutoff < high


def test_the_best_cut_off_maximises_f1():
    scores, hits = np.array([0.9, 0.8, 0.7, 0.6, 0.2]), np.array([True, True, False, True, False])
    assert best_cutoff(scores, hits) == pytest.approx(0.4)
    assert best_cutoff(np.array([0.9, 0.4, 0.4]), np.array([True, True, True])) == pytest.approx(0.2)


def test_calibration_needs_both_kinds_of_examples_and_a_useful_encoder():
    with pytest.raises(ValueError, match=r"hits must hold examples of both kinds; got 2 hits among 2"):
        fit_calibration([1, 2], [1, 1])
    with pytest.raises(ValueError, match=r"larger margins are no likelier to be hits"):
        fit_calibration([1, 2, 3, 4], [1, 1, 0, 0])
    with pytest.raises(ValueError, match=r"slope must be positive"):
        Calibration(slope=-1)
