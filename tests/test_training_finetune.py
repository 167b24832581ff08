"""Fine-tuning as a whole: it learns, leaves what it promises, resumes exactly, and loads as any checkpoint does."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_data
from PIL import Image
from toy_shapes import toy_nano, write_shapes

from segment_anything.build_sam import load_sam, sam_model_registry
from segment_anything.checkpoints import load_checkpoint
from segment_anything.datasets import open_dataset
from segment_anything.modeling import Sam
from segment_anything.prompts import Prompt
from segment_anything.training.classes import ClassHead, ClassPrompts, load_classes
from segment_anything.training.distributed import Workers
from segment_anything.training.finetune import FinetuneResult, finetune, open_parts, prepare_task, read_back
from segment_anything.training.finetune_options import DataOptions, FinetuneOptions
from segment_anything.training.loop import Loop
from segment_anything.training.options import LoopOptions
from segment_anything.training.sources import TrainingItem
from segment_anything.training.task import Learned, TrainingError

QUIET = {"progress": False, "tensorboard": False}
SMALL = LoopOptions(epochs=1, batch_size=2, **QUIET)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), count=10)


@pytest.fixture(scope="module")
def learned(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sam, FinetuneResult, Path]:
    """A tiny model that learned boxes and classes from nothing."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("learned")
    sam = toy_nano()
    options = FinetuneOptions(train="all", prompts="boxes", rounds=1, augment=False, classes=True)
    loop = LoopOptions(epochs=24, lr=4e-3, batch_size=2, layer_decay=1.0, progress=False)
    return sam, finetune(sam, DataOptions(data=shapes), out, options, loop), out


def test_box_iou_rises_clearly(learned: tuple[Sam, FinetuneResult, Path]) -> None:
    _, result, _ = learned
    assert result.finished
    assert result.after["miou_box"] > result.before["miou_box"] + 0.3
    assert result.after["class_accuracy"] > 0.8


def test_run_leaves_checkpoints_plot_csv_log_and_summary(learned: tuple[Sam, FinetuneResult, Path]) -> None:
    _, result, out = learned
    expected = {"best.safetensors", "last.safetensors", "best.classes.safetensors", "last.classes.safetensors"}
    expected |= {"plot.png", "metrics.csv", "summary.txt", "tensorboard", "resume.pt"}
    assert {path.name for path in out.iterdir()} == expected
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(25)]
    assert {"train_loss", "train_miou", "valid_loss", "valid_miou", "valid_miou_1_click", "valid_miou_3_clicks"} <= set(
        rows[1]
    )
    text = (out / "summary.txt").read_text()
    assert text == result.summary
    for words in ("date:", "epochs:", "batch size:", "learning rate:", "data:", "miou box:", "24 of 24"):
        assert words in text
    with Image.open(out / "plot.png") as plot:
        assert plot.height > 0.6 * plot.width  # two rows of panels


def test_best_checkpoint_scores_what_the_run_reported(learned: tuple[Sam, FinetuneResult, Path], shapes: Path) -> None:
    _, result, out = learned
    best = toy_nano(seed=9)
    load_checkpoint(best, out / "best.safetensors")
    again = finetune(
        best,
        DataOptions(data=shapes),
        out.parent / "again",
        FinetuneOptions(train="decoder", prompts="boxes", rounds=1, augment=False),
        LoopOptions(epochs=1, lr=1e-9, batch_size=4, **QUIET),
    )
    assert again.before["miou_box"] == pytest.approx(result.after["miou_box"], abs=1e-6)


def test_class_head_is_kept_in_a_file_of_its_own(learned: tuple[Sam, FinetuneResult, Path], shapes: Path) -> None:
    sam, _, out = learned
    head = load_classes(out / "last.classes.safetensors")
    assert isinstance(head, ClassHead)
    assert head.classes == ("rectangle", "disc")
    sample = open_dataset(shapes)[0]
    embedding = sam.eval().encode(sample.image)
    boxes = [Prompt.make(box=toy_box(mask)) for mask in sample.masks]
    found, certain = head.classify(embedding, sam.decode(embedding, boxes, multimask_output=False))
    assert found.tolist() == sample.labels.tolist()
    assert (certain > 0.5).all()


def toy_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_best_epoch_is_chosen_by_masks_and_classes_alike(shapes: Path, tmp_path: Path) -> None:
    data = DataOptions(data=shapes, max_valid_images=2)
    options = FinetuneOptions(train="decoder", prompts="boxes", rounds=1, augment=False, classes=True)
    task = prepare_task(toy_nano(), *open_parts(data), tmp_path, *options.filled(SMALL, None), Workers(), {})
    with torch.no_grad():
        values = task.validate()
    assert values["score"] == pytest.approx((values["miou"] + values["class_accuracy"]) / 2)


def test_run_that_made_nothing_better_says_so(shapes: Path, tmp_path: Path) -> None:
    loop = LoopOptions(epochs=1, lr=1e-12, batch_size=4, **QUIET)
    result = finetune(toy_nano(), DataOptions(data=shapes), tmp_path, FinetuneOptions(rounds=1, views=1), loop)
    assert "best 0, as it came: no epoch was better" in result.summary


def test_classes_of_another_file_are_refused(learned: tuple[Sam, FinetuneResult, Path]) -> None:
    with pytest.raises(ValueError, match="holds no classes"):
        load_classes(learned[2] / "last.safetensors")


def test_checkpoint_loads_through_the_registry_and_predicts_the_same(shapes: Path, tmp_path: Path) -> None:
    sam = load_sam("nano", checkpoint="random", image_size=64)
    options = FinetuneOptions(train="lora", rounds=2, objects=1)
    result = finetune(sam, DataOptions(data=shapes, max_images=2, max_valid_images=1), tmp_path, options, SMALL)
    assert "last.safetensors predicts the same" in result.summary
    again = sam_model_registry["nano"](checkpoint=str(tmp_path / "last.safetensors"), image_size=64)
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    prompt = Prompt.make(points=[[20, 20]], labels=[1])
    with torch.inference_mode():
        logits = [model.eval().decode(model.encode(image), prompt).low_res_logits for model in (sam, again)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_frozen_encoder_is_left_alone_and_its_embeddings_are_computed_once(shapes: Path, tmp_path: Path) -> None:
    sam = toy_nano()
    before = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    data, cache = DataOptions(data=shapes), tmp_path / "cache"
    options = FinetuneOptions(train="decoder", rounds=1, views=2, cache=cache)
    finetune(sam, data, tmp_path / "one", options, SMALL)
    changed = {name.split(".")[0] for name, tensor in sam.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"prompt_encoder", "mask_decoder"}
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert len(files) == 8 * 2 + 2  # two views of each training image, one of each held-out image
    finetune(toy_nano(), data, tmp_path / "two", options, SMALL)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == files


def test_whole_image_mode_draws_one_mask_a_class(shapes: Path, tmp_path: Path) -> None:
    sam = toy_nano()
    loop = LoopOptions(epochs=2, batch_size=2, lr=1e-3, **QUIET)
    result = finetune(sam, DataOptions(data=shapes), tmp_path, FinetuneOptions(prompts="none", train="all"), loop)
    assert result.history[-1]["train_loss"] < result.history[1]["train_loss"]
    classes = load_classes(tmp_path / "last.classes.safetensors")
    assert isinstance(classes, ClassPrompts)
    label_map = classes.segment(sam.eval(), sam.encode(open_dataset(shapes)[0].image))
    assert label_map.shape == (64, 64)
    assert set(label_map.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("train", ["decoder", "all"])
def test_whole_image_mode_leaves_no_object_out(shapes: Path, tmp_path: Path, train: str) -> None:
    seen = {}
    for prompts in ("none", "both"):
        options, loop = FinetuneOptions(prompts=prompts, train=train, objects=1, augment=False).filled(SMALL, None)
        parts = open_parts(DataOptions(data=shapes))
        out = tmp_path / prompts
        seen[prompts] = len(
            prepare_task(toy_nano(), *parts, out, options, loop, Workers(), {}).source.load(0, 0).targets
        )
    assert seen == {"none": 2, "both": 1}


class BreaksOff:
    """A task that is interrupted, without any chance to save, after some batches."""

    def __init__(self, task, after: int) -> None:  # type: ignore[no-untyped-def]
        self._task, self._left = task, after

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        return getattr(self._task, name)

    def learn(self, batch: Sequence[TrainingItem]) -> Learned:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._task.learn(batch)


def train_with(data: DataOptions, out: Path, break_after: int | None) -> dict[str, torch.Tensor]:
    """Final weights of a short run with low rank, drop-outs of data order and clicks, and saves every second step."""
    options, loop = FinetuneOptions(train="lora", rounds=2, objects=1, classes=True).filled(
        LoopOptions(epochs=2, batch_size=2, save_every=2, lr=1e-3, **QUIET), None
    )
    train, valid = open_parts(data)
    task = prepare_task(toy_nano(), train, valid, out, options, loop, Workers(), {})
    if break_after is not None:
        with pytest.raises(KeyboardInterrupt):
            Loop(BreaksOff(task, break_after), loop, out).run()
        return train_with(data, out, None)
    Loop(task, loop, out).run()
    return task.module.state_dict()


def test_interrupted_run_ends_with_the_same_weights_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    data = DataOptions(data=shapes, max_valid_images=1)
    whole = train_with(data, tmp_path / "whole", None)
    broken = train_with(data, tmp_path / "broken", 3)
    assert list(whole) == list(broken)
    unlike = {n: float((v - broken[n]).abs().max()) for n, v in whole.items() if not torch.equal(v, broken[n])}
    assert not unlike


def test_another_model_does_not_go_on_with_a_run(shapes: Path, tmp_path: Path) -> None:
    data, options = DataOptions(data=shapes, max_valid_images=1), FinetuneOptions(rounds=1, views=1)
    finetune(toy_nano(), data, tmp_path, options, SMALL)
    with pytest.raises(TrainingError, match=r"holds a run with weights = .* Use the same options"):
        finetune(toy_nano(seed=5), data, tmp_path, options, SMALL)


def test_unreadable_image_is_skipped_and_named_in_the_summary(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", count=15)
    (root / "images/003.png").write_bytes(b"not an image")
    toy_data.save(root / "labels/014.png", np.ones((9, 9), np.uint8))
    data = DataOptions(data=root)
    with pytest.raises(ValueError, match=r"1 of 3 samples cannot be used(.|\n)*014.png"):  # of the held-out images
        finetune(toy_nano(), data, tmp_path / "out", FinetuneOptions(rounds=1, views=1), SMALL)
    toy_data.save(root / "labels/014.png", np.ones((64, 64), np.uint8))
    result = finetune(toy_nano(), data, tmp_path / "out2", FinetuneOptions(rounds=1, views=1), SMALL)
    assert "1 of 12 samples were skipped" in result.summary
    assert "images/003.png" in result.summary


def test_data_set_without_objects_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        toy_data.save(tmp_path / f"data/images/{number}.png", toy_data.photo("a"))
        toy_data.save(tmp_path / f"data/masks/{number}.png", np.zeros((8, 12), np.uint8))
    with pytest.raises(ValueError, match="no held-out image shows an object"):
        finetune(toy_nano(), DataOptions(data=tmp_path / "data"), tmp_path / "out", None, SMALL)


def test_training_images_without_objects_teach_nothing_and_stop_nothing(shapes: Path, tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", count=6)
    toy_data.save(root / "labels/000.png", np.zeros((64, 64), np.uint8))
    result = finetune(toy_nano(), DataOptions(data=root), tmp_path / "out", FinetuneOptions(rounds=1, views=1), SMALL)
    assert result.finished


def test_half_precision_weights_are_refused(shapes: Path, tmp_path: Path) -> None:
    sam = toy_nano().to(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"weights must be float32 to be trained, got torch.bfloat16"):
        finetune(sam, DataOptions(data=shapes), tmp_path, None, SMALL)


def test_validation_set_with_other_classes_is_refused(shapes: Path, tmp_path: Path) -> None:
    other = write_shapes(tmp_path / "other", count=2)
    (other / "classes.txt").write_text("square\nball\n")
    with pytest.raises(ValueError, match="has the classes square, ball"):
        open_parts(DataOptions(data=shapes, valid_data=other))


def test_checkpoint_that_predicts_otherwise_is_not_passed_off_as_the_model(shapes: Path, tmp_path: Path) -> None:
    options, loop = FinetuneOptions(train="all").filled(SMALL, None)
    train, valid = open_parts(DataOptions(data=shapes))
    task = prepare_task(toy_nano(), train, valid, tmp_path, options, loop, Workers(), {})
    task.save(tmp_path, "last")
    assert "predicts the same" in read_back(task, tmp_path / "last.safetensors")
    torch.nn.init.normal_(task.sam.mask_decoder.mask_tokens.weight)
    with pytest.raises(TrainingError, match="read back predicts other masks"):
        read_back(task, tmp_path / "last.safetensors")


def test_bf16_and_checkpointed_blocks_train_like_plain_ones(shapes: Path, tmp_path: Path) -> None:
    losses = []
    for precision, checkpointing in (("fp32", False), ("fp32", True), ("bf16", False)):
        options = FinetuneOptions(train="all", rounds=2, precision=precision, checkpointing=checkpointing)
        out = tmp_path / f"{precision}{checkpointing}"
        data = DataOptions(data=shapes, max_images=2, max_valid_images=1)
        losses.append(finetune(toy_nano(), data, out, options, SMALL).history[-1]["train_loss"])
    assert losses[1] == losses[0]
    assert losses[2] == pytest.approx(losses[0], rel=0.05)


def test_bad_options_are_named() -> None:
    for change, words in (
        ({"train": "encoder"}, "train must be one of decoder, lora, all, got 'encoder'"),
        ({"preset": "12gb"}, "preset must be one of auto, cpu, 8gb"),
        ({"rounds": 0}, "rounds must be 1 or more, got 0"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=words):
            FinetuneOptions(**change)


def test_presets_fill_what_was_left_open() -> None:
    filled, loop = FinetuneOptions(rounds=3).filled(LoopOptions(batch_size=7), memory_gb=25.0)
    assert (filled.preset, filled.train, filled.rounds, filled.precision) == ("24gb", "lora", 3, "bf16")
    assert (loop.batch_size, loop.accumulate) == (7, 1)
    assert FinetuneOptions().filled(LoopOptions(), None)[0].preset == "cpu"
