"""Models as folders: what is saved loads as the same model, here and in transformers, and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_sam

from segment_anything import load_sam
from segment_anything._transformers_layout import transformers_names
from segment_anything.interchange import from_pretrained, save_pretrained
from segment_anything.modeling import Sam
from segment_anything.prompts import Prompt
from segment_anything.utils.transforms import ResizeLongestSide

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def answer(sam: Sam) -> torch.Tensor:
    with torch.no_grad():
        return sam.decode(sam.encode(PHOTO), Prompt.make([[20, 10]], [1], box=[5, 5, 50, 30])).low_res_logits


@pytest.mark.parametrize("name", ["vit_t", "nano"])
def test_a_saved_folder_loads_as_the_same_model(name: str, tmp_path: Path) -> None:
    sam = load_sam(name, checkpoint="random", device="cpu", image_size=64)
    save_pretrained(sam, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert (again.name, again.image_size, again.training) == (name, 64, False)
    assert torch.equal(answer(again), answer(sam))


def test_the_transformers_layout_comes_back_as_the_same_model(tmp_path: Path) -> None:
    sam = toy_sam()
    save_pretrained(sam, tmp_path, layout="transformers")
    assert torch.equal(answer(from_pretrained(tmp_path)), answer(sam))


def test_published_sizes_keep_their_name(tmp_path: Path) -> None:
    sam = load_sam("vit_b", checkpoint="random", device="cpu", image_size=64)
    save_pretrained(sam, tmp_path, layout="transformers")
    assert from_pretrained(tmp_path).name == "vit_b"


def test_transformers_gives_the_same_masks_as_we_do(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sam = toy_sam()
    save_pretrained(sam, tmp_path, layout="transformers")
    theirs, report = transformers.SamModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    points, labels = torch.tensor([[[20.0, 10.0], [40.0, 30.0]]]), torch.tensor([[1, 0]])
    with torch.no_grad():
        features = sam.image_encoder(image)
        low_res, iou = sam.predict_low_res(features, (points, labels), None, None, True)
        output = theirs.eval()(pixel_values=image, input_points=points[None], input_labels=labels[None])
        assert (theirs.get_image_embeddings(image) - features).abs().max() < 1e-4
    assert (output.pred_masks[0] - low_res).abs().max() < 1e-4
    assert (output.iou_scores[0] - iou).abs().max() < 1e-4


def test_what_transformers_saves_loads_here(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sam = toy_sam(seed=3)
    save_pretrained(sam, tmp_path / "ours", layout="transformers")
    transformers.SamModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert (answer(from_pretrained(tmp_path / "theirs")) - answer(sam)).abs().max() < 1e-5


def test_a_model_made_by_transformers_gives_the_same_masks_here(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_pretrained(toy_sam(), tmp_path / "shape", layout="transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        theirs = transformers.SamModel(transformers.SamConfig.from_pretrained(tmp_path / "shape")).eval()
        with torch.no_grad():  # what it begins with is zero in places: positions, biases
            for parameter in theirs.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    sam = from_pretrained(tmp_path / "theirs")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[4.0, 8.0, 50.0, 40.0], [20.0, 1.0, 60.0, 63.0]])
    with torch.no_grad():
        features = sam.image_encoder(image)
        low_res, iou = sam.predict_low_res(features, None, boxes, None, True)
        output = theirs(pixel_values=image, input_boxes=boxes[None])
        assert (theirs.get_image_embeddings(image) - features).abs().max() < 1e-4
    assert (output.pred_masks[0] - low_res).abs().max() < 1e-4
    assert (output.iou_scores[0] - iou).abs().max() < 1e-4


def test_transformers_processor_makes_our_input(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sam = toy_sam()
    save_pretrained(sam, tmp_path, layout="transformers")
    made = transformers.SamImageProcessorPil.from_pretrained(tmp_path)(PHOTO, return_tensors="pt")["pixel_values"]
    resized = ResizeLongestSide(sam.image_size).apply_image(PHOTO)
    ours = sam.preprocess(torch.from_numpy(resized).permute(2, 0, 1))
    assert (made[0] - ours).abs().max() < 1e-4


@pytest.mark.parametrize(("name", "file"), [("vit_t", "mobile_sam.pth"), ("vit_b", "sam_vit_b.pth")])
def test_a_published_file_becomes_a_folder(name: str, file: str, tmp_path: Path) -> None:
    sam = load_sam(name, checkpoint="random", device="cpu", image_size=64)
    torch.save(sam.state_dict(), tmp_path / file)
    loaded = load_sam(name, checkpoint=tmp_path / file, device="cpu", image_size=64)
    save_pretrained(loaded, tmp_path / "folder")
    assert torch.equal(answer(from_pretrained(tmp_path / "folder")), answer(sam))


def test_every_entry_has_a_name_of_its_own_in_transformers() -> None:
    names = transformers_names(toy_sam())
    assert len({*names.values()}) == len(names)
    assert not [theirs for theirs in names.values() if "image_encoder" in theirs or ".norm" in theirs]


def test_a_model_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    sam = load_sam("nano", checkpoint="random", device="cpu", image_size=64)
    with pytest.raises(ValueError, match="SamModel has ViT encoders only; nano has NanoEncoder"):
        save_pretrained(sam, tmp_path, layout="transformers")


def test_a_model_without_a_name_cannot_be_saved_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name must be one of .*; got 'toy'"):
        save_pretrained(toy_sam(), tmp_path)


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout must be one of native, transformers; got 'keras'"):
        save_pretrained(toy_sam(), tmp_path, layout="keras")


def test_what_is_missing_in_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.json is missing.*load_sam"):
        from_pretrained(tmp_path)


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    save_pretrained(toy_sam(), tmp_path, layout="transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r'model_type must be "segment-anything-engine" or "sam".*got \'bert\''):
        from_pretrained(tmp_path)


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path: Path) -> None:
    save_pretrained(toy_sam(), tmp_path, layout="transformers")
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"0 entries are missing \(none\), 14 are not known \(vision_encoder.layers.1"):
        from_pretrained(tmp_path)
    config["vision_config"].update(num_hidden_layers=2, mlp_dim=32)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"mlp.lin1.weight has shape \(64, 16\), and config.json asks for \(32, 16\)"):
        from_pretrained(tmp_path)
