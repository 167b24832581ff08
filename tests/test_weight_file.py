"""Reading tensors out of weight files of every making, and one line for every file that is something else."""

import argparse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from segment_anything._weight_file import CheckpointError, read_weight_file

WEIGHTS = {
    "image_encoder.a.weight": torch.arange(6.0).reshape(2, 3),
    "prompt_encoder.b.bias": torch.ones(2, dtype=torch.float16),
    "mask_decoder.c.count": torch.tensor(7),
}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_holds_weights(path: Path) -> None:
    tensors = read_weight_file(path).tensors
    assert tensors.keys() == WEIGHTS.keys()
    assert all(
        torch.equal(tensors[name], WEIGHTS[name]) and tensors[name].dtype == WEIGHTS[name].dtype for name in WEIGHTS
    )


def test_a_pth_file_of_today_is_read(tmp_path: Path) -> None:
    assert_holds_weights(saved(tmp_path / "a.pth", WEIGHTS))


def test_a_pt_file_in_the_format_before_torch_1_6_is_read(tmp_path: Path) -> None:
    assert_holds_weights(saved(tmp_path / "a.pt", WEIGHTS, _use_new_zipfile_serialization=False))


def test_a_safetensors_file_is_read_with_its_metadata_whatever_its_suffix(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.pth", {"model": "nano"})
    assert_holds_weights(tmp_path / "a.pth")
    file = read_weight_file(tmp_path / "a.pth")
    assert (file.format, file.metadata) == ("safetensors", {"model": "nano"})


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_weights_are_taken_out_of_a_trainer_s_dictionary(tmp_path: Path, key: str) -> None:
    trained = {key: WEIGHTS, "optimizer": {"state": {0: {"step": torch.tensor(3)}}}, "epoch": 5}
    path = saved(tmp_path / "a.pth", trained)
    assert_holds_weights(path)
    assert read_weight_file(path).wrapper == key


def test_options_and_numpy_numbers_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    best = {"args": argparse.Namespace(lr=1e-3), "best": np.float64(0.5), "curve": np.arange(3.0)}
    assert_holds_weights(saved(tmp_path / "a.pth", {"model": WEIGHTS, **best}))


@pytest.mark.parametrize("prefix", ["module.", "model.", "sam.", "module.model.sam."])
def test_prefixes_of_wrapping_modules_are_taken_off(tmp_path: Path, prefix: str) -> None:
    path = saved(tmp_path / "a.pth", {prefix + name: tensor for name, tensor in WEIGHTS.items()})
    assert_holds_weights(path)
    assert read_weight_file(path).prefix == prefix


def test_names_of_compiled_and_of_partly_wrapped_models_are_cleaned(tmp_path: Path) -> None:
    inside = {
        name.replace("image_encoder.", "image_encoder._orig_mod.module."): tensor for name, tensor in WEIGHTS.items()
    }
    assert_holds_weights(saved(tmp_path / "a.pth", inside))


def test_what_lies_outside_the_prefix_is_the_trainer_s_own(tmp_path: Path) -> None:
    trained = {f"model.{name}": tensor for name, tensor in WEIGHTS.items()} | {"loss.weight": torch.ones(1)}
    assert_holds_weights(saved(tmp_path / "a.pth", trained))


def test_pixel_statistics_are_no_weights(tmp_path: Path) -> None:
    assert_holds_weights(saved(tmp_path / "a.pth", {**WEIGHTS, "pixel_mean": torch.ones(3, 1, 1)}))


def assert_refused(path: Path, words: str, expected_bytes: int | None = None) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        read_weight_file(path, expected_bytes)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_an_empty_file_is_named_so(tmp_path: Path) -> None:
    assert_refused(written(tmp_path / "a.pth", b""), r"is empty \(0 bytes\)")


def test_a_web_page_is_named_so(tmp_path: Path) -> None:
    assert_refused(written(tmp_path / "a.pth", b"\n <!DOCTYPE html><html>Not found"), "is a web page, not weights")


def test_a_git_lfs_pointer_is_named_so_with_the_size_it_points_to(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 375042383\n"
    assert_refused(written(tmp_path / "a.pth", pointer), "Git LFS pointer to 375042383 bytes.*`git lfs pull`")


def test_any_other_file_is_named_by_its_first_bytes(tmp_path: Path) -> None:
    assert_refused(
        written(tmp_path / "a.pth", b"\x89PNG\r\n\x1a\nabc"), r"is not a weight file: it starts with b'\\x89PNG"
    )


def test_a_pth_file_cut_short_is_named_so_with_the_bytes_expected(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", WEIGHTS)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(path, f"is cut short or damaged: {size - 100} of {size} bytes", expected_bytes=size)


def test_a_safetensors_file_cut_short_is_named_so_with_the_bytes_needed(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    assert_refused(
        written(tmp_path / "b.safetensors", content[:-1]), f"is cut short: {len(content) - 1} of {len(content)} bytes"
    )
    assert_refused(
        written(tmp_path / "c.safetensors", content[:40]), r"is cut short: its header ends early \(40 bytes\)"
    )


def test_a_damaged_safetensors_header_is_named_so(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    assert_refused(written(tmp_path / "b.safetensors", content[:9] + b"?" + content[10:]), "header cannot be read")


def test_an_old_pth_file_cut_short_is_named_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", WEIGHTS, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-10])
    assert_refused(path, "is damaged")


def test_an_archive_of_something_else_is_named_by_what_it_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("photo.jpg", b"")
    assert_refused(tmp_path / "a.pth", "ZIP archive without PyTorch weights; it holds photo.jpg")


def test_a_torchscript_program_is_named_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/constants.pkl", b"")
    assert_refused(tmp_path / "a.pt", "is a TorchScript program")


def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", torch.nn.Linear(2, 2))
    assert_refused(path, r"holds a pickled torch.nn.modules.linear.Linear, .*run code.*save model.state_dict\(\)")


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(1)])
def test_what_is_no_dictionary_is_named_by_its_type(tmp_path: Path, content: Any) -> None:
    assert_refused(saved(tmp_path / "a.pth", content), f"holds a {type(content).__name__}, expected a state dict")


def test_a_dictionary_without_tensors_is_named_by_its_keys(tmp_path: Path) -> None:
    assert_refused(
        saved(tmp_path / "a.pth", {"epoch": 3, "lr": 0.1}), "holds no tensors by name; its keys are epoch, lr"
    )


def test_the_error_is_caught_by_programs_written_for_the_original(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="is empty"):
        read_weight_file(written(tmp_path / "a.pth", b""))
