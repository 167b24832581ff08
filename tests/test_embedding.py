"""An image embedding: saved, loaded, and refused where it does not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import toy_sam

from segment_anything import ImageEmbedding, ImageGeometry, Prompt
from segment_anything.embedding import fingerprint_image, fingerprint_weights

PICTURE = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)


def embedding() -> ImageEmbedding:
    features = torch.linspace(-2, 2, 32).reshape(1, 2, 4, 4)
    return ImageEmbedding(features, ImageGeometry((20, 30), 64), "toy", "weights", fingerprint_image(PICTURE))


def test_a_saved_embedding_loads_as_it_was(tmp_path: Path) -> None:
    saved = embedding()
    saved.save(tmp_path / "a.safetensors")
    loaded = ImageEmbedding.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.features, saved.features)
    assert loaded.features.dtype == torch.float32
    for name in ("geometry", "model", "weights_fingerprint", "image_fingerprint"):
        assert getattr(loaded, name) == getattr(saved, name)


def test_half_precision_takes_half_the_file_and_keeps_three_digits(tmp_path: Path) -> None:
    saved = ImageEmbedding(torch.randn(1, 64, 16, 16), ImageGeometry((20, 30), 64), "toy", "weights", "image")
    saved.save(tmp_path / "whole.safetensors")
    saved.save(tmp_path / "half.safetensors", half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.55 * sizes[1]
    loaded = ImageEmbedding.load(tmp_path / "half.safetensors").features
    assert loaded.dtype == torch.float32
    assert (loaded - saved.features).abs().max() < 1e-3 * saved.features.abs().max()


def test_an_embedding_that_carries_gradients_or_is_bfloat16_can_be_saved(tmp_path: Path) -> None:
    features = torch.randn(1, 2, 4, 4, requires_grad=True).bfloat16()
    saved = ImageEmbedding(features, ImageGeometry((20, 30), 64), "toy", "weights", "image")
    saved.save(tmp_path / "a.safetensors")
    assert torch.equal(ImageEmbedding.load(tmp_path / "a.safetensors").features, features.detach().float())


def test_saving_leaves_no_other_file_and_replaces_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"older")
    embedding().save(tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert ImageEmbedding.load(tmp_path / "a.safetensors").model == "toy"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: there is no such embedding file"):
        ImageEmbedding.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", b"\xff" * 64])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.safetensors: not an image embedding, or damaged"):
        ImageEmbedding.load(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    embedding().save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"short\.safetensors: not an image embedding, or damaged"):
        ImageEmbedding.load(path)


def test_a_file_of_weights_is_no_embedding(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"features": torch.zeros(1)}, path)
    assert load_file(path)["features"].shape == (1,)
    with pytest.raises(ValueError, match=r"weights\.safetensors: not an image embedding \(format None\)"):
        ImageEmbedding.load(path)


def test_another_image_is_refused() -> None:
    embedding().check_image(PICTURE.copy())
    other = PICTURE.copy()
    other[19, 29, 2] += 1
    with pytest.raises(ValueError, match=r"made from another image.*encode this one"):
        embedding().check_image(other)


def test_images_of_another_shape_but_the_same_bytes_differ() -> None:
    assert fingerprint_image(PICTURE) != fingerprint_image(PICTURE.reshape(30, 20, 3))
    assert fingerprint_image(PICTURE) == fingerprint_image(np.flip(np.flip(PICTURE).copy()))


def test_an_embedding_made_by_other_weights_is_refused() -> None:
    ours, other = toy_sam(seed=0), toy_sam(seed=1)
    made = ours.encode(PICTURE)
    with pytest.raises(ValueError, match=r"made by other weights \(toy, input 64\).*encode the image again"):
        other.decode(made, Prompt.make(box=[2, 2, 20, 15]))


def test_an_embedding_made_at_another_size_is_refused() -> None:
    made = toy_sam(image_size=96).encode(PICTURE)
    with pytest.raises(ValueError, match=r"input 96\) than this model's \(toy, input 64\)"):
        toy_sam(image_size=64).decode(made, Prompt.make(box=[2, 2, 20, 15]))


def test_an_embedding_is_refused_after_a_training_step_of_the_encoder() -> None:
    sam = toy_sam()
    made = sam.encode(PICTURE)
    sam.decode(made, Prompt.make(box=[2, 2, 20, 15]))
    optimizer = torch.optim.SGD(sam.image_encoder.parameters(), lr=0.1)
    sam.encode(PICTURE).features.square().sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="made by other weights"):
        sam.decode(made, Prompt.make(box=[2, 2, 20, 15]))


def test_an_embedding_stays_good_after_a_training_step_of_the_decoder() -> None:
    sam = toy_sam()
    made = sam.encode(PICTURE)
    optimizer = torch.optim.SGD(sam.mask_decoder.parameters(), lr=0.1)
    before = sam.decode(made, Prompt.make(box=[2, 2, 20, 15])).low_res_logits
    before.square().mean().backward()
    optimizer.step()
    assert not torch.equal(sam.decode(made, Prompt.make(box=[2, 2, 20, 15])).low_res_logits, before)


def test_weights_have_the_same_name_in_float32_and_bfloat16() -> None:
    state = toy_sam().image_encoder.state_dict()
    halved = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert fingerprint_weights(state) == fingerprint_weights(halved)


@pytest.mark.parametrize("change", ["value", "name", "shape"])
def test_weights_that_differ_have_another_name(change: str) -> None:
    state = {"a": torch.arange(6.0), "b": torch.ones(2)}
    other = {
        "value": {"a": torch.arange(6.0), "b": torch.tensor([1.0, 1.1])},
        "name": {"a": torch.arange(6.0), "c": torch.ones(2)},
        "shape": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)},
    }[change]
    assert fingerprint_weights(state) != fingerprint_weights(other)


def test_every_pixel_of_a_large_image_counts_and_so_does_its_place() -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    names = {fingerprint_image(image)}
    for y, x, channel in ((0, 0, 0), (35, 41, 2), (69, 89, 1), (12, 7, 0)):
        other = image.copy()
        other[y, x, channel] ^= 1
        names.add(fingerprint_image(other))
    names.add(fingerprint_image(image[::-1]))
    board = ((np.indices((64, 64)).sum(axis=0) // 8 % 2) * 255).astype(np.uint8)
    names |= {fingerprint_image(np.stack([one] * 3, axis=-1)) for one in (board, 255 - board)}
    assert len(names) == 8


def test_the_name_of_an_image_does_not_depend_on_how_it_lies_in_memory() -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    unaligned = np.frombuffer(b"x" + image.tobytes(), dtype=np.uint8, offset=1).reshape(image.shape)
    assert fingerprint_image(np.asfortranarray(image)) == fingerprint_image(image) == fingerprint_image(unaligned)
