"""ResizeLongestSide: sizes, pixels, points and boxes."""

import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything.utils.transforms import ResizeLongestSide


def test_the_longest_side_takes_the_target_length_and_the_other_is_rounded() -> None:
    assert ResizeLongestSide.get_preprocess_shape(1200, 1800, 1024) == (683, 1024)
    assert ResizeLongestSide.get_preprocess_shape(1800, 1200, 1024) == (1024, 683)
    assert ResizeLongestSide.get_preprocess_shape(3, 2, 4) == (4, 3)


def test_images_are_resized_by_pillows_antialiased_bilinear_filter() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    resized = ResizeLongestSide(30).apply_image(image)
    assert np.array_equal(resized, np.array(Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR)))
    averaged = image.reshape(20, 3, 30, 3, 3).mean(axis=(1, 3))
    assert abs(resized - averaged).mean() < 20  # picking single pixels would differ by about 60


def test_torch_images_are_resized_like_pillow_within_rounding() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    transform = ResizeLongestSide(30)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    difference = transform.apply_image_torch(tensor)[0].permute(1, 2, 0).numpy() - transform.apply_image(image)
    assert abs(difference).max() < 1.01


def test_points_scale_by_the_rounded_size_and_come_as_float32() -> None:
    transform = ResizeLongestSide(1024)
    points = np.array([[[900.0, 600.0], [1800.0, 1200.0]]])
    moved = transform.apply_coords(points, (1200, 1800))
    assert moved.dtype == np.float32
    assert np.allclose(moved, [[[512, 341.5], [1024, 683]]])


def test_points_given_are_not_changed() -> None:
    points, tensor = np.array([[10.0, 20.0]]), torch.tensor([[10.0, 20.0]])
    ResizeLongestSide(64).apply_coords(points, (128, 128))
    ResizeLongestSide(64).apply_coords_torch(tensor, (128, 128))
    assert points.tolist() == [[10, 20]]
    assert tensor.tolist() == [[10, 20]]


def test_whole_numbers_are_not_rounded_while_scaling() -> None:
    assert ResizeLongestSide(64).apply_coords(np.array([[1, 3]]), (128, 128)).tolist() == [[0.5, 1.5]]


def test_boxes_move_corner_by_corner() -> None:
    boxes = np.array([[0, 0, 128, 64], [32, 16, 64, 32]])
    assert ResizeLongestSide(64).apply_boxes(boxes, (64, 128)).tolist() == [[0, 0, 64, 32], [16, 8, 32, 16]]
    assert ResizeLongestSide(64).apply_boxes(boxes[1], (64, 128)).tolist() == [[16, 8, 32, 16]]


def test_tensors_move_as_arrays_do_and_are_never_float64() -> None:
    transform = ResizeLongestSide(100)
    boxes = torch.tensor([[3.0, 7.0, 31.0, 77.0]], dtype=torch.float64)
    moved = transform.apply_boxes_torch(boxes, (81, 123))
    assert moved.dtype == torch.float32
    assert np.allclose(moved.numpy(), transform.apply_boxes(boxes.numpy(), (81, 123)), rtol=1e-6)
    points = boxes.reshape(1, 2, 2)
    assert torch.equal(transform.apply_coords_torch(points, (81, 123)).reshape(1, 4), moved)


def test_a_float_image_is_refused_with_the_cure() -> None:
    with pytest.raises(
        ValueError, match=r"uint8 with values 0..255, but is float64 of shape \(2, 2, 3\).*image \* 255"
    ):
        ResizeLongestSide(4).apply_image(np.zeros((2, 2, 3)))  # type: ignore[arg-type]
