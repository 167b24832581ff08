"""Text as a prompt: the projection hangs on only where asked, and travels with the weights."""

import numpy as np
import pytest
import torch
from toy import toy_sam

from segment_anything.checkpoints import load_checkpoint, save_checkpoint
from segment_anything.modeling.text_prompt import attach_text, detach_text, encode_text_prompts, text_projection
from segment_anything.text.prompting import TextPrompter, decode_text, load_text_sam

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
VECTORS = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))


class Letters:
    """Vectors of 12 numbers: how often each of the first 12 letters occurs."""

    def encode_text(self, texts):
        return np.array([[text.count(letter) for letter in "abcdefghijkl"] for text in texts], np.float32)

    def encode_image(self, images):
        return np.stack([np.resize(image.mean(axis=(0, 1)), 12) for image in images])


def text_sam(seed=0):
    sam = toy_sam()
    torch.manual_seed(seed)
    attach_text(sam.prompt_encoder, 12)
    return sam


def test_the_published_parameter_names_do_not_change():
    names = set(toy_sam().state_dict())
    sam = text_sam()
    assert set(sam.state_dict()) - names == {
        "prompt_encoder.text_projection.linear.weight",
        "prompt_encoder.text_projection.linear.bias",
    }
    detach_text(sam.prompt_encoder)
    assert set(sam.state_dict()) == names
    assert text_projection(sam.prompt_encoder) is None


def test_a_projection_that_is_there_is_kept_and_another_width_refused():
    sam = text_sam()
    assert attach_text(sam.prompt_encoder, 12) is text_projection(sam.prompt_encoder)
    with pytest.raises(ValueError, match=r"this model takes text vectors of width 12; got 16"):
        attach_text(sam.prompt_encoder, 16)


def test_a_vector_becomes_one_more_token_beside_the_others():
    sam = text_sam()
    points = (torch.rand(3, 2, 2) * 64, torch.ones(3, 2))
    alone, dense = encode_text_prompts(sam.prompt_encoder, VECTORS)
    beside, _ = encode_text_prompts(sam.prompt_encoder, VECTORS, points)
    without, _ = sam.prompt_encoder(points, None, None)
    assert (alone.shape, dense.shape) == ((3, 1, 32), (3, 32, 4, 4))
    torch.testing.assert_close(beside, torch.cat([without, alone], dim=1))


def test_only_the_direction_of_a_vector_counts():
    sam = text_sam()
    torch.testing.assert_close(
        encode_text_prompts(sam.prompt_encoder, VECTORS)[0], encode_text_prompts(sam.prompt_encoder, 7 * VECTORS)[0]
    )


def test_other_prompts_answer_as_before():
    from segment_anything.prompts import Prompt

    plain, with_text = toy_sam(), text_sam()
    prompt = Prompt.make(box=[5, 5, 30, 30])
    a, b = (sam.decode(sam.encode(IMAGE), prompt).low_res_logits for sam in (plain, with_text))
    torch.testing.assert_close(a, b)


def test_phrases_decode_the_same_one_by_one_and_together():
    sam = text_sam()
    embedding = sam.encode(IMAGE)
    together, single = (decode_text(sam, embedding, VECTORS, batch_size=size) for size in (64, 1))
    torch.testing.assert_close(together.low_res_logits, single.low_res_logits, rtol=1e-4, atol=1e-5)
    assert together.masks().shape == (3, 3, 40, 60)
    assert decode_text(sam, embedding, VECTORS, multimask_output=False).iou_predictions.shape == (3, 1)
    assert not torch.equal(together.low_res_logits[0], together.low_res_logits[1])


def test_weights_with_text_come_back_from_a_file(tmp_path):
    sam = text_sam(seed=1)
    path = save_checkpoint(sam, tmp_path / "text.safetensors")
    again = text_sam(seed=2)
    load_checkpoint(again, path)
    embedding = sam.encode(IMAGE)
    torch.testing.assert_close(
        decode_text(sam, embedding, VECTORS).low_res_logits, decode_text(again, embedding, VECTORS).low_res_logits
    )


def test_a_named_model_with_text_is_built_from_its_file(tmp_path):
    from segment_anything.architectures import assemble

    sam = assemble("nano")
    attach_text(sam.prompt_encoder, 5)
    path = save_checkpoint(sam, tmp_path / "nano_text.safetensors")
    again = load_text_sam("nano", path)
    assert not again.training
    for name, tensor in sam.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_weights_without_text_are_refused(tmp_path):
    path = save_checkpoint(toy_sam(), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"plain\.safetensors was not trained with text: it has no prompt_enc"):
        load_text_sam("nano", path)


def test_a_model_without_text_is_refused():
    with pytest.raises(ValueError, match=r"sam takes no text: load it with text\.load_text_sam"):
        TextPrompter(toy_sam(), Letters())
    with pytest.raises(ValueError, match=r"this model takes no text: call attach_text"):
        encode_text_prompts(toy_sam().prompt_encoder, VECTORS)


def test_an_encoder_of_another_width_is_refused():
    sam = toy_sam()
    attach_text(sam.prompt_encoder, 5)
    with pytest.raises(ValueError, match=r"encoder gives vectors of width 12, and the model was trained with 5"):
        TextPrompter(sam, Letters())
    with pytest.raises(ValueError, match=r"vectors must have shape \(N, 5\).* got \(3, 12\)"):
        encode_text_prompts(sam.prompt_encoder, VECTORS)
