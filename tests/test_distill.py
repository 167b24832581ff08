"""Pre-training and distillation on small images: both learn, resume, and give weights that go on to fine-tuning."""

from pathlib import Path

import numpy as np
import pytest
import torch
import toy_data
from toy import toy_sam
from toy_shapes import toy_nano, write_shapes

from segment_anything.checkpoints import load_checkpoint
from segment_anything.modeling.mae import load_mae_weights
from segment_anything.training.distill import adopt, distill
from segment_anything.training.options import LoopOptions
from segment_anything.training.photos import Crops, find_photos, hold_out
from segment_anything.training.prepare import load_encoder
from segment_anything.training.pretrain import pretrain
from segment_anything.training.pretrain_options import DistillOptions, PretrainOptions

QUIET = {"progress": False, "tensorboard": False}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_shapes(tmp_path_factory.mktemp("shapes"), count=10)


def test_student_comes_to_see_what_the_teacher_sees(shapes: Path, tmp_path: Path) -> None:
    teacher, student = toy_nano(seed=0), toy_nano(seed=1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    loop = LoopOptions(epochs=8, lr=3e-3, batch_size=2, **QUIET)
    result = distill(teacher, student, shapes, tmp_path, DistillOptions(views=2, valid_fraction=0.2), loop)
    first, last = result.history[0], result.history[-1]
    assert last["valid_loss"] < 0.5 * first["valid_loss"]
    assert last["valid_cosine"] > first["valid_cosine"] + 0.2
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    loaded = toy_nano(seed=2)
    load_checkpoint(loaded, result.checkpoint)
    decoder = loaded.mask_decoder.state_dict()
    assert all(torch.equal(tensor, decoder[name]) for name, tensor in teacher.mask_decoder.state_dict().items())


def test_unreadable_photos_are_skipped_and_named_in_the_summary(tmp_path: Path) -> None:
    photos = write_shapes(tmp_path / "shapes", count=30) / "images"
    for number in (3, 28):  # one of those to learn from, one of the ten held out
        (photos / f"{number:03}.png").write_bytes(b"not an image")
    loop = LoopOptions(epochs=1, batch_size=4, **QUIET)
    pretrain_options = PretrainOptions(size=64, decoder_dim=32, decoder_depth=1, valid_fraction=1 / 3)
    mae = pretrain(toy_sam(image_size=64), photos, tmp_path / "mae", pretrain_options, loop)
    distill_options = DistillOptions(views=1, valid_fraction=1 / 3)
    taught = distill(toy_nano(), toy_nano(seed=1), photos, tmp_path / "taught", distill_options, loop)
    for result, out in ((mae, tmp_path / "mae"), (taught, tmp_path / "taught")):
        assert result.summary == (out / "summary.txt").read_text()
        assert "2 of " in result.summary
        for name in ("003.png", "028.png"):
            assert f"{name}: not an image" in result.summary


def test_summary_tells_data_length_and_loss(shapes: Path, tmp_path: Path) -> None:
    options = PretrainOptions(size=64, decoder_dim=32, decoder_depth=1, valid_fraction=0.2)
    text = pretrain(
        toy_sam(image_size=64), shapes, tmp_path, options, LoopOptions(epochs=2, batch_size=4, **QUIET)
    ).summary
    for words in ("75% hidden", "8 images to train on, 2 to validate on", "2 of 2, best", "loss:", "best.encoder"):
        assert words in text


def test_student_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"toy cannot learn from toy: input, channels and cells .* nano fits itself"):
        adopt(toy_sam(), toy_nano())


def test_masked_autoencoding_learns_and_its_weights_go_into_a_larger_model(shapes: Path, tmp_path: Path) -> None:
    sam = toy_sam(image_size=64)
    options = PretrainOptions(size=64, decoder_dim=32, decoder_depth=1, valid_fraction=0.2)
    loop = LoopOptions(epochs=12, lr=3e-3, batch_size=4, **QUIET)
    result = pretrain(sam, shapes, tmp_path, options, loop)
    assert result.history[-1]["valid_loss"] < 0.97 * result.history[0]["valid_loss"]
    larger = toy_sam(image_size=128, seed=3)
    load_encoder(larger, result.encoder)
    reference = toy_sam(image_size=128, seed=3)
    load_mae_weights(reference.image_encoder, sam.image_encoder.state_dict())
    assert torch.equal(
        larger.image_encoder.blocks[0].attn.qkv.weight, reference.image_encoder.blocks[0].attn.qkv.weight
    )
    assert larger.image_encoder.pos_embed.shape == (1, 8, 8, 16)


def test_model_built_for_another_size_is_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be built for images of 224 pixels, got 64"):
        pretrain(toy_sam(), shapes, tmp_path, PretrainOptions(), LoopOptions(**QUIET))


def test_encoder_of_another_kind_is_refused(shapes: Path, tmp_path: Path) -> None:
    sam = toy_nano()
    result = distill(sam, toy_nano(seed=1), shapes, tmp_path, DistillOptions(views=1), LoopOptions(epochs=1, **QUIET))
    with pytest.raises(ValueError, match="these are no MAE weights for this encoder"):
        load_encoder(toy_sam(), result.checkpoint)


def test_photos_of_a_data_set_are_found_without_its_masks(shapes: Path) -> None:
    assert [path.parent.name for path in find_photos(shapes)] == ["images"] * 10


def test_photos_of_a_plain_folder_are_found_below_it(tmp_path: Path) -> None:
    for name in ("a.png", "deep/er/b.jpg"):
        toy_data.save(tmp_path / name, toy_data.photo("a"))
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.name for path in find_photos(tmp_path)] == ["a.png", "b.jpg"]


def test_folder_without_photos_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images found in this folder or below"):
        find_photos(tmp_path)
    with pytest.raises(ValueError, match="at least 2 images are needed"):
        hold_out([Path("a")], 0.1)


def test_crops_differ_by_epoch_and_repeat_by_seed(shapes: Path) -> None:
    crops = Crops(find_photos(shapes), 32, seed=0)
    first, again, other = crops.load(0, 0), crops.load(0, 0), crops.load(0, 1)
    assert first.image.shape == (3, 32, 32)
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


def test_whole_image_is_kept_for_validation(tmp_path: Path) -> None:
    toy_data.save(tmp_path / "a.png", np.full((20, 30, 3), 7, np.uint8))
    photo = Crops((tmp_path / "a.png",), 10, seed=0, fixed=True).load(0, 5)
    assert (photo.image == 7).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda: PretrainOptions(mask_ratio=0.0), "mask_ratio must be between 0 and 1"),
        (lambda: PretrainOptions(decoder_dim=40), "decoder_dim must be a multiple of 32, got 40"),
        (lambda: PretrainOptions(precision="fp16"), "precision must be one of fp32, bf16"),
        (lambda: DistillOptions(views=0), "views must be 1 or more"),
    ],
)
def test_bad_options_are_named(options, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        options()
