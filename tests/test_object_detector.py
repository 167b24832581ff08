"""The class-agnostic object detector: it learns from boxes of masks, and its ONNX file answers the same."""

import numpy as np
import pytest

from segment_anything.detectors import load_detector
from segment_anything.masks import box_iou
from segment_anything.records import make_record
from segment_anything.training.object_detector import (
    ObjectDetectorOptions,
    _augmented,
    boxes_of_records,
    export_object_detector,
    train_object_detector,
)

TINY = ObjectDetectorOptions(
    image_size=64, width=32, queries=20, decoder_layers=2, steps=150, augment=False, device="cpu"
)


def bricks(seed, size=64):
    """A noisy grey image with one to three bright rectangles, and their boxes."""
    generator = np.random.default_rng(seed)
    image, boxes = generator.normal(110, 15, (size, size, 3)), []
    for _ in range(generator.integers(1, 4)):
        w, h = generator.integers(12, 28, 2)
        x, y = generator.integers(0, size - w), generator.integers(0, size - h)
        if boxes and box_iou(np.array([[x - 2, y - 2, x + w + 2, y + h + 2]]), np.array(boxes)).max() > 0:
            continue
        image[y : y + h, x : x + w] = generator.integers(0, 2, 3) * 200 + generator.normal(20, 10, (h, w, 3))
        boxes.append((x, y, x + w, y + h))
    return image.clip(0, 255).astype(np.uint8), np.array(boxes, np.float32)


def recall(detector, samples):
    """Share of boxes that one of as many best detections overlaps by more than a half."""
    hits = total = 0
    for image, boxes in samples:
        found = np.array([d.box_xyxy for d in detector.detect(image)[: len(boxes)]]).reshape(-1, 4)
        overlaps = box_iou(boxes, found) if len(found) else np.zeros((len(boxes), 1))
        hits, total = hits + (overlaps.max(axis=1) > 0.5).sum(), total + len(boxes)
    return hits / total


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    losses = []
    train_object_detector(
        [bricks(seed) for seed in range(200)], folder, TINY, progress=lambda step, loss: losses.append(loss)
    )
    return folder, losses


def test_training_lowers_the_loss_and_finds_objects_it_never_saw(trained, tmp_path):
    folder, losses = trained
    unseen = [bricks(seed) for seed in range(1000, 1030)]
    untrained = train_object_detector(unseen[:1], tmp_path, ObjectDetectorOptions(**{**vars(TINY), "steps": 1}))
    untrained.min_score = 0.0
    assert len(losses) == 150
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    detector = load_detector(folder, min_score=0.0)
    assert recall(detector, unseen) > recall(untrained, unseen) + 0.3
    assert detector.class_names == ("object",)


def test_the_onnx_file_answers_like_the_folder(trained, tmp_path):
    folder, _ = trained
    path = export_object_detector(folder, tmp_path / "objects.onnx")
    image, _ = bricks(1001)
    onnx, torch_ = load_detector(path, min_score=0.2), load_detector(folder, min_score=0.2)
    exported, original = onnx.detect(image), torch_.detect(image)
    assert onnx.family == "detr"
    assert original
    assert {d.label for d in exported} == {"object"}
    best = max(original, key=lambda d: d.score)
    np.testing.assert_allclose(exported[0].box_xyxy, best.box_xyxy, atol=0.05)
    assert exported[0].score == pytest.approx(best.score, abs=1e-3)


def test_boxes_of_masks_count_every_pixel_and_skip_empty_masks():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    records = [make_record(mask), make_record(np.zeros((6, 8), bool))]
    assert boxes_of_records(records).tolist() == [[2, 1, 7, 4]]
    assert boxes_of_records([]).shape == (0, 4)


def test_augmentation_keeps_boxes_on_their_objects():
    generator = np.random.default_rng(0)
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 5:25] = 255
    for _ in range(30):
        moved, boxes = _augmented((image, np.array([[5, 10, 25, 20]], np.float32)), generator)
        (x0, y0, x1, y1), rows, columns = boxes[0], *np.nonzero(moved[..., 0])
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)


def test_images_without_boxes_alone_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"at least one image with a box; got 1 images without any"):
        train_object_detector([(np.zeros((8, 8, 3), np.uint8), np.zeros((0, 4)))], tmp_path, TINY)


def test_boxes_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"samples\[0\]: boxes must have shape \(N, 4\).* got \(4,\)"):
        train_object_detector([(np.zeros((8, 8, 3), np.uint8), np.array([0, 0, 4, 4]))], tmp_path, TINY)


def test_options_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"image_size must be a multiple of 32; got 100"):
        ObjectDetectorOptions(image_size=100)
    with pytest.raises(ValueError, match=r"width must be a multiple of 16; got 20"):
        ObjectDetectorOptions(width=20)
    with pytest.raises(ValueError, match=r"steps must be at least 1; got 0"):
        ObjectDetectorOptions(steps=0)
