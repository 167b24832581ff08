"""Builders, the registry and `load_sam`: sizes, weights, devices, types, and the words of their errors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segment_anything.architectures import ARCHITECTURES, assemble, without_initialisation
from segment_anything.build_sam import build_sam, build_sam_vit_h, load_sam, sam_model_registry
from segment_anything.checkpoints import BUNDLED, CheckpointError, save_checkpoint

SMALL = {"vit_b": 64, "vit_t": 64, "nano": 64}
"""Models that a test can afford, and an input size for each."""


def test_the_registry_has_the_original_names_and_the_two_small_models() -> None:
    assert sorted(sam_model_registry) == ["default", "nano", "vit_b", "vit_h", "vit_l", "vit_t"]
    assert sam_model_registry["default"] is build_sam is build_sam_vit_h


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_builder_gives_an_evaluating_model_of_the_size_asked_for(name: str) -> None:
    sam = sam_model_registry[name](image_size=SMALL[name])
    assert (sam.name, sam.image_size, sam.training) == (name, 64, False)
    cells = 64 // ARCHITECTURES[name].stride
    with torch.no_grad():
        embedding = sam.image_encoder(torch.zeros(1, 3, 64, 64))
    assert embedding.shape == (1, sam.prompt_encoder.embed_dim, cells, cells)
    assert sam.prompt_encoder.image_embedding_size == (cells, cells)
    assert sam.prompt_encoder.input_image_size == (64, 64)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_b", 1000, r"image_size of vit_b must be a positive multiple of 16 .*got 1000. .*legal: 992 and 1008"),
        ("vit_t", 0, r"multiple of 16 pixels \(16, 32, 48, ...; trained at 1024\); got 0. The nearest legal: 16"),
        ("nano", 48, r"image_size of nano must be a positive multiple of 32 .*got 48. The nearest legal: 32 and 64"),
        ("vit_b", 512.5, r"image_size must be a whole number of pixels; got 512.5"),
    ],
)
def test_an_illegal_size_is_answered_with_the_legal_ones(name: str, size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sam_model_registry[name](image_size=size)


def test_sizes_may_be_numpy_integers() -> None:
    assert sam_model_registry["nano"](image_size=np.int64(64)).image_size == 64


def test_building_without_initialisation_changes_no_buffer_and_no_shape() -> None:
    torch.manual_seed(0)
    usual = assemble("vit_t", 64)
    torch.manual_seed(0)
    with without_initialisation():
        bare = assemble("vit_t", 64)
    assert {n: t.shape for n, t in bare.state_dict().items()} == {n: t.shape for n, t in usual.state_dict().items()}
    for (name, buffer), (_, expected) in zip(bare.named_buffers(), usual.named_buffers(), strict=True):
        if not name.endswith("gaussian_matrix"):  # random, and in every checkpoint
            assert torch.equal(buffer, expected), name


def test_initialisation_works_again_afterwards() -> None:
    with without_initialisation():
        pass
    assert torch.nn.Linear(4, 4).weight.abs().sum() > 0


def test_the_bundled_model_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = load_sam(checkpoint="random", image_size=64)
    monkeypatch.setitem(BUNDLED, "nano", save_checkpoint(saved, tmp_path / "nano.safetensors", dtype=torch.float16))
    sam = load_sam()
    assert (sam.name, sam.image_size, sam.training, sam.dtype) == ("nano", 64, False, torch.float32)
    torch.testing.assert_close(
        sam.mask_decoder.iou_token.weight, saved.mask_decoder.iou_token.weight, rtol=1e-3, atol=1e-3
    )


def test_weights_by_path_may_be_given_to_load_sam(tmp_path: Path) -> None:
    saved = load_sam("vit_t", checkpoint="random", image_size=64)
    path = save_checkpoint(saved, tmp_path / "a.pth")
    loaded = load_sam("vit_t", checkpoint=path, image_size=64)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"a.pth is vit_t; you asked for nano"):
        load_sam(checkpoint=path)


def test_random_weights_are_always_the_same_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (load_sam(checkpoint="random", image_size=64) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", torch.bfloat16])
def test_bfloat16_weights_are_allowed_on_the_cpu(dtype: str | torch.dtype) -> None:
    assert load_sam(checkpoint="random", device="cpu", dtype=dtype, image_size=64).dtype == torch.bfloat16


def test_float16_on_the_cpu_is_refused_with_the_types_that_work() -> None:
    with pytest.raises(ValueError, match=r'dtype float16 is for GPUs: .*Take "bf16" or "float32"'):
        load_sam(checkpoint="random", device="cpu", dtype="fp16")


@pytest.mark.parametrize("dtype", ["int4", torch.float64, None])
def test_other_types_are_refused_by_name(dtype: str | torch.dtype | None) -> None:
    with pytest.raises(ValueError, match=r"dtype must be float32, bfloat16 \(bf16\), float16 \(fp16\) or int8; got"):
        load_sam(checkpoint="random", dtype=dtype)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=rf"device '{device}' cannot be used here: .*Take .auto., or .cpu."):
        load_sam(checkpoint="random", device=device)


def test_auto_takes_the_best_device_that_is_there() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert load_sam(checkpoint="random", image_size=64).device.type == expected


def test_an_unknown_model_is_answered_with_the_names() -> None:
    with pytest.raises(ValueError, match=r"name must be one of nano, vit_b, vit_h, vit_l, vit_t; got 'sam_b'"):
        load_sam("sam_b")
