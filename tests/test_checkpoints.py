"""Finding, recognising, loading and saving weights of whole models."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from segment_anything._download import RemoteFile
from segment_anything._recognise import differences, resample_table
from segment_anything.architectures import ARCHITECTURES, entries
from segment_anything.build_sam import build_sam_nano, build_sam_vit_b, build_sam_vit_t
from segment_anything.checkpoints import (
    PUBLISHED,
    CheckpointError,
    find_checkpoint,
    inspect_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from segment_anything.modeling import Sam

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test alone."""
    monkeypatch.setenv("SEGMENT_ANYTHING_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def nano() -> Sam:
    torch.manual_seed(0)
    return build_sam_nano(image_size=64)


@pytest.fixture(scope="module")
def nano_file(nano: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(nano, tmp_path_factory.mktemp("weights") / "nano.safetensors")


def empty(name: str, image_size: int | None = None) -> dict[str, torch.Tensor]:
    """A state dict of a model's names and shapes that takes no room: every entry is one number, expanded."""
    return {entry: torch.zeros(()).expand(shape) for entry, shape in entries(name, image_size).items()}


def weights_file(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h", "vit_t"])
def test_names_and_shapes_are_those_of_the_published_models(name: str) -> None:
    published = json.loads((DATA / "manifests" / f"{name}.json").read_text())
    assert {entry: list(shape) for entry, shape in entries(name).items()} == published


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_model_is_recognised_by_its_entries(tmp_path: Path, name: str) -> None:
    info = inspect_checkpoint(weights_file(tmp_path / "a.pth", empty(name)))
    assert (info.model, info.image_size, info.loadable) == (name, ARCHITECTURES[name].image_size, True)


def test_inspection_tells_size_format_wrapping_and_counts(tmp_path: Path) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in empty("vit_b", 512).items()}
    info = inspect_checkpoint(weights_file(tmp_path / "a.pth", {"model": tensors, "epoch": 3}))
    assert (info.model, info.image_size, info.format, info.dtype) == ("vit_b", 512, "PyTorch", "float32")
    assert (info.wrapper, info.prefix, info.parameters) == (
        "model",
        "module.",
        sum(t.numel() for t in tensors.values()),
    )
    text = info.describe()
    assert "a.pth: vit_b" in text
    assert "image size  512" in text
    assert 'wrapped in  "model"' in text
    assert 'prefix      "module."' in text
    assert "fits: load_sam('vit_b'" in text


def test_inspection_counts_what_is_missing_unexpected_and_misshapen(tmp_path: Path) -> None:
    tensors = empty("vit_t")
    del tensors["mask_decoder.iou_token.weight"]
    tensors["mask_decoder.extra"] = torch.zeros(1)
    tensors["mask_decoder.mask_tokens.weight"] = torch.zeros(5, 256)
    info = inspect_checkpoint(weights_file(tmp_path / "a.pth", tensors))
    assert info.missing == ("mask_decoder.iou_token.weight",)
    assert info.unexpected == ("mask_decoder.extra",)
    assert info.mismatched == ("mask_decoder.mask_tokens.weight is (5, 256), expected (4, 256)",)
    assert not info.loadable
    assert "verdict     1 key missing: mask_decoder.iou_token.weight; 1 key unexpected" in info.describe()
    assert json.loads(json.dumps(info.as_dict()))["loadable"] is False


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("image_encoder.trunk.patch_embed.proj.weight", "a SAM 2 checkpoint"),
        ("mask_decoder.hf_token.weight", "an HQ-SAM checkpoint"),
        ("vision_encoder.pos_embed", "a SAM in the names of the transformers library"),
        ("backbone.conv.weight", ""),
    ],
)
def test_relatives_are_named(tmp_path: Path, name: str, words: str) -> None:
    info = inspect_checkpoint(weights_file(tmp_path / "a.pth", {name: torch.zeros(1)}))
    assert (info.model, info.relative) == (None, words)
    assert (words or "not a known SAM") in info.describe()


def test_the_published_file_is_verified_by_its_hash(
    tmp_path: Path, nano_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = nano_file.read_bytes()
    for sha256, words in (
        (hashlib.sha256(content).hexdigest(), "x, SHA-256 verified"),
        ("0" * 64, "no: as large as x's"),
    ):
        monkeypatch.setitem(PUBLISHED, "x", RemoteFile("x.pth", "", len(content), sha256))
        assert inspect_checkpoint(nano_file, verify=True).published.startswith(words)
    assert inspect_checkpoint(nano_file).published == ""


def test_the_wrong_model_is_named_with_the_call_that_is_right(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "a.pth", empty("vit_l"))
    with pytest.raises(
        CheckpointError, match=r'a.pth is vit_l; you asked for vit_b. Use sam_model_registry\["vit_l"\]'
    ):
        build_sam_vit_b(path)


def test_a_relative_is_refused_by_its_name(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "a.pth", {"image_encoder.trunk.pos_embed": torch.zeros(1, 8, 7, 7)})
    with pytest.raises(CheckpointError, match=r"a.pth is a SAM 2 checkpoint; this package loads vit_h, vit_l, vit_b"):
        build_sam_vit_t(path)


def test_missing_keys_are_counted_and_the_first_named(tmp_path: Path, nano: Sam) -> None:
    tensors = nano.state_dict()
    gone = sorted(name for name in tensors if name.startswith("mask_decoder"))[:4]
    path = weights_file(tmp_path / "a.pth", {name: tensor for name, tensor in tensors.items() if name not in gone})
    with pytest.raises(CheckpointError, match=r"a.pth does not fit nano: 4 keys missing: mask_decoder.* and 1 more"):
        build_sam_nano(path)


def test_the_line_of_differences_counts_in_words() -> None:
    assert differences((), (), ()) == ""
    assert differences(("a", "b", "c"), ("d",), ()) == "3 keys missing: a, b, c; 1 key unexpected: d"
    assert differences((), (), ("e is (1,), expected (2,)",)) == "1 key of another shape: e is (1,), expected (2,)"


def test_the_errors_are_caught_by_programs_written_for_the_original(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint gone.pth"):
        find_checkpoint("gone.pth")
    with pytest.raises(RuntimeError, match="you asked for vit_b"):
        build_sam_vit_b(weights_file(tmp_path / "a.pth", empty("vit_t")))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_what_is_saved_comes_back_the_same(tmp_path: Path, nano: Sam, suffix: str) -> None:
    path = save_checkpoint(nano, tmp_path / "new" / f"a{suffix}")
    assert os.listdir(path.parent) == [f"a{suffix}"]  # no temporary file is left
    loaded = build_sam_nano(path, image_size=64).state_dict()
    assert loaded.keys() == nano.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in nano.state_dict().items())


def test_saving_in_half_precision_halves_the_file_and_loads_as_float32(
    tmp_path: Path, nano: Sam, nano_file: Path
) -> None:
    path = save_checkpoint(nano, tmp_path / "half.safetensors", dtype=torch.float16)
    assert path.stat().st_size < 0.52 * nano_file.stat().st_size
    assert inspect_checkpoint(path).dtype == "float16"
    loaded = build_sam_nano(path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert loaded.image_size == 64  # the file remembers it


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, nano: Sam) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"old")
    broken = build_sam_nano(image_size=64)
    broken.mask_decoder.iou_token.weight = broken.mask_decoder.mask_tokens.weight  # safetensors refuses shared memory
    with pytest.raises(RuntimeError, match="share memory"):
        save_checkpoint(broken, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "cache"]


def test_saving_refuses_other_suffixes_and_types(tmp_path: Path, nano: Sam) -> None:
    with pytest.raises(ValueError, match=r"path must end in .safetensors, .pth or .pt; got 'a.onnx'"):
        save_checkpoint(nano, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type.*got torch.int8"):
        save_checkpoint(nano, tmp_path / "a.pth", dtype=torch.int8)


def test_weights_are_loaded_into_a_model_in_place(nano: Sam, nano_file: Path) -> None:
    other = build_sam_nano(image_size=64).to(torch.bfloat16)
    parameter = other.mask_decoder.iou_token.weight
    load_checkpoint(other, nano_file)
    assert other.mask_decoder.iou_token.weight is parameter
    assert torch.equal(parameter, nano.mask_decoder.iou_token.weight.to(torch.bfloat16))


def test_a_loaded_model_outlives_its_file(tmp_path: Path, nano: Sam) -> None:
    path = save_checkpoint(nano, tmp_path / "a.pth")
    loaded = build_sam_nano(path)
    path.write_bytes(bytes(path.stat().st_size))  # as torch.save over the same path would, midway
    assert torch.equal(loaded.mask_decoder.iou_token.weight, nano.mask_decoder.iou_token.weight)


def test_position_tables_of_the_same_size_are_not_touched() -> None:
    table = torch.randn(1, 4, 4, 2)
    assert resample_table(table, (1, 4, 4, 2)) is table


def test_an_absolute_table_keeps_a_constant_and_a_slope() -> None:
    ramp = torch.linspace(0, 7, 8)[None, :, None, None].expand(1, 8, 8, 3)
    small = resample_table(ramp, (1, 4, 4, 3))
    assert small.shape == (1, 4, 4, 3)
    assert (small.diff(dim=1) > 0.9).all()
    torch.testing.assert_close(resample_table(torch.ones(1, 8, 8, 3), (1, 5, 5, 3)), torch.ones(1, 5, 5, 3))


def test_a_relative_table_keeps_distance_zero_in_its_middle() -> None:
    table = torch.arange(-7.0, 8.0)[:, None]  # distances -7 .. 7 of a grid of 8
    small = resample_table(table, (7, 1))[:, 0]  # a grid of 4: one cell there is two here
    assert small[3] == 0
    torch.testing.assert_close(small, -small.flip(0))
    torch.testing.assert_close(small[4], torch.tensor(15 / 7))


def test_weights_for_another_size_are_resampled_on_loading(tmp_path: Path) -> None:
    tensors = empty("vit_b", 64)
    for name in ("pos_embed", "blocks.2.attn.rel_pos_h", "blocks.0.attn.rel_pos_h"):
        tensors[f"image_encoder.{name}"] = torch.randn(tensors[f"image_encoder.{name}"].shape)
    path = weights_file(tmp_path / "a.pth", tensors)
    assert build_sam_vit_b(path).image_size == 64
    larger = build_sam_vit_b(path, image_size=96)
    assert larger.image_size == 96
    assert larger.image_encoder.pos_embed.shape == (1, 6, 6, 768)
    table = larger.image_encoder.blocks[2].attn.rel_pos_h
    torch.testing.assert_close(table, resample_table(tensors["image_encoder.blocks.2.attn.rel_pos_h"], (11, 64)))
    window = larger.image_encoder.blocks[0].attn.rel_pos_h  # windows have one size in every model
    assert torch.equal(window, tensors["image_encoder.blocks.0.attn.rel_pos_h"])
