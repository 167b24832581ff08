"""CLIP and SigLIP of the transformers library as encoders, with tiny random models from a local folder."""

import numpy as np
import pytest
import tiny_transformers
import torch
from colour_encoder import coloured_squares

from segment_anything.text import TextScorer, TransformersEncoder, label_records
from segment_anything.text.encoders import class_token_bias

PICTURES = [np.random.default_rng(i).integers(0, 255, (32 + 8 * i, 32 + 8 * i, 3), np.uint8) for i in range(3)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return TransformersEncoder(tiny_transformers.save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return TransformersEncoder(tiny_transformers.save_siglip(tmp_path_factory.mktemp("siglip")))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_texts_and_pictures_become_vectors_of_one_width(name, request):
    encoder = request.getfixturevalue(name)
    texts, images = encoder.encode_text(["a cat", "the blue dog"]), encoder.encode_image(PICTURES)
    width = {"clip": 12, "siglip": 16}[name]
    assert (texts.shape, images.shape) == ((2, width), (3, width))
    assert texts.isfinite().all()
    assert images.isfinite().all()


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_text_has_the_same_vector_alone_and_in_a_batch(name, request):
    encoder = request.getfixturevalue(name)
    together = encoder.encode_text(["a cat", "the blue dog and something"])
    torch.testing.assert_close(encoder.encode_text(["a cat"]), together[:1], rtol=1e-4, atol=1e-5)


def test_siglip_is_read_as_a_sigmoid_and_clip_is_not(clip, siglip):
    assert clip.logit_bias is None
    assert isinstance(siglip.logit_bias, float)
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=0.01)


def test_a_very_long_phrase_is_cut_instead_of_failing(clip):
    assert clip.encode_text(["red dog " * 200]).shape == (1, 12)


def test_labels_come_out_of_a_transformers_model(clip):
    image, records = coloured_squares("red", "blue")
    labelled = label_records(records, image, ["cat", "dog"], TextScorer(clip))
    assert {r["category"] for r in labelled} <= {"cat", "dog"}
    assert all(0.5 <= r["category_score"] <= 1 for r in labelled)


def test_attention_inside_a_full_mask_changes_nothing(clip):
    whole = [np.ones(picture.shape[:2], bool) for picture in PICTURES]
    torch.testing.assert_close(clip.encode_image(PICTURES, whole), clip.encode_image(PICTURES))


def test_attention_inside_a_mask_hides_the_rest_from_the_last_layer(clip):
    half = [np.arange(p.shape[1])[None, :] < p.shape[1] // 2 for p in PICTURES]
    masks = [np.broadcast_to(h, p.shape[:2]).copy() for h, p in zip(half, PICTURES, strict=True)]
    inside, plain = clip.encode_image(PICTURES, masks), clip.encode_image(PICTURES)
    assert not torch.allclose(inside, plain, atol=1e-5)
    torch.testing.assert_close(clip.encode_image(PICTURES), plain)  # the restriction ends with the call


def test_with_one_layer_the_hidden_part_has_no_influence(tmp_path):
    folder = tiny_transformers.save_clip(tmp_path)
    encoder = TransformersEncoder(folder)
    del encoder.model.vision_model.encoder.layers[0]
    left = np.zeros((32, 32), bool)
    left[:, :16] = True
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    other = picture.copy()
    other[:, 16:] = 0
    same = encoder.encode_image([picture, other], [left, left])
    torch.testing.assert_close(same[0], same[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*encoder.encode_image([picture, other]), atol=1e-4)


def test_the_bias_opens_only_the_patches_that_touch_the_mask():
    mask = np.zeros((8, 8), bool)
    mask[0, 5] = True
    row = class_token_bias([mask], 2)[0, 0, 0]
    assert row.tolist() == [0, float("-inf"), 0, float("-inf"), float("-inf")]
    assert (class_token_bias([np.zeros((8, 8), bool)], 2) == 0).all()


def test_masks_are_refused_where_the_output_is_not_a_class_token(siglip):
    with pytest.raises(ValueError, match=r"masks: attention inside a mask needs a CLIP model"):
        siglip.encode_image(PICTURES[:1], [np.ones((32, 32), bool)])


def test_a_model_without_text_is_refused(tmp_path):
    folder = tiny_transformers.save_rtdetr(tmp_path)
    with pytest.raises(ValueError, match=r"is a RTDetrModel, which does not compare text with images"):
        TransformersEncoder(folder)


def test_a_name_that_is_nowhere_says_what_to_download(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'nobody/no-clip' is no local folder.*`hf download nobody/no-clip"):
        TransformersEncoder("nobody/no-clip")
