"""Images in: every kind of file as a viewer shows it, one clear error for each that cannot be read, checked arrays."""

import contextlib
import io
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from segment_anything.images import ImageReadError, check_image_array, list_images, read_image

EXAMPLES = Path(__file__).parent.parent / "examples" / "images"
RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


@pytest.fixture
def colours() -> np.ndarray:
    """(4, 6, 3) uint8: a red left half and a green right half."""
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, :3] = RED
    image[:, 3:] = GREEN
    return image


def photo_bytes(suffix: str, **save: object) -> bytes:
    """A noisy 64 x 48 photograph, encoded."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=Image.registered_extensions()[suffix], **save)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp", ".gif"])
def test_a_lossless_file_is_read_as_it_was_written(tmp_path: Path, colours: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(colours).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    read = read_image(path)
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, colours)


def test_a_jpeg_photograph_is_read_as_rgb() -> None:
    image = read_image(EXAMPLES / "coffee.jpg")
    assert image.shape == (400, 600, 3)
    red, _, blue = image[360, 300].astype(int)
    assert red > 2 * blue  # the red saucer


def test_a_string_path_and_an_open_file_are_read_alike(tmp_path: Path, colours: np.ndarray) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(colours).save(path)
    np.testing.assert_array_equal(read_image(str(path)), read_image(io.BytesIO(path.read_bytes())))


# The eight ways a camera may be held: what an upright picture "red left, green right" looks like when stored.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"held{suffix}"
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)


def test_orientation_agrees_with_pillow(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        Image.fromarray(pixels).save(path, exif=exif)
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_image(path), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow says so too
def test_a_damaged_exif_block_does_not_cost_the_photograph(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo_bytes(".jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage"))
    assert read_image(path).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("brightest", "full_range"),
    [(200, 255), (255, 255), (1023, 1023), (4000, 4095), (4095, 4095), (16000, 16383), (65535, 65535)],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_by_its_bit_depth(tmp_path: Path, suffix: str, brightest: int, full_range: int) -> None:
    path = tmp_path / f"grey{suffix}"
    Image.fromarray(np.array([[0, brightest // 2, brightest]], np.uint16)).save(path)
    expected = np.round(np.array([0, brightest // 2, brightest]) * 255 / full_range)
    np.testing.assert_array_equal(read_image(path)[0], np.repeat(expected[:, None], 3, axis=1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1000.0, 0.0, 1000.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([float("nan"), 0.2, float("inf")], [0, 51, 0]),
        ([7.5, 7.5, 7.5], [8, 8, 8]),
        ([float("nan")] * 3, [0, 0, 0]),
    ],
)
def test_float_tiff_is_scaled_by_its_range(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.array([values], np.float32)).save(path)
    np.testing.assert_array_equal(read_image(path)[0, :, 0], expected)


def test_signed_32_bit_grey_is_stretched_from_darkest_to_brightest(tmp_path: Path) -> None:
    path = tmp_path / "ct.tif"
    Image.fromarray(np.array([[-1024, 488, 2000]], np.int32)).save(path)
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 128, 255])


def test_8_bit_and_1_bit_grey_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 90, 255]], np.uint8)).save(tmp_path / "l.png")
    Image.fromarray(np.array([[False, True, True]])).save(tmp_path / "1.png")
    assert read_image(tmp_path / "l.png")[0].tolist() == [[0] * 3, [90] * 3, [255] * 3]
    assert read_image(tmp_path / "1.png")[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.array([[(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 127)]], np.uint8)
    for suffix in (".png", ".tif", ".webp"):
        Image.fromarray(rgba).save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
        assert read_image(tmp_path / f"a{suffix}")[0].tolist() == [list(RED), list(WHITE), [128] * 3]


def test_grey_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[(10, 255), (10, 0)]], np.uint8)).save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png")[0].tolist() == [[10] * 3, [255] * 3]


@pytest.mark.parametrize("transparent", [None, 1])
def test_palette_colours_and_the_transparent_index_are_shown(tmp_path: Path, transparent: int | None) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", **({} if transparent is None else {"transparency": transparent}))
    assert read_image(tmp_path / "p.png")[0].tolist() == [list(RED), list(GREEN if transparent is None else WHITE)]


def test_cmyk_and_lab_become_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert read_image(tmp_path / "cmyk.tif")[0, 0].tolist() == list(RED)
    Image.new("LAB", (1, 1), (255, 128, 128)).save(tmp_path / "lab.tif")
    np.testing.assert_allclose(read_image(tmp_path / "lab.tif")[0, 0], WHITE, atol=2)


def test_the_first_of_many_frames_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in (RED, GREEN, WHITE)]
    for suffix in (".gif", ".tif", ".webp"):
        path = tmp_path / f"frames{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(read_image(path), np.broadcast_to(np.uint8(RED), (2, 3, 3)), atol=4)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, suffix: str, part: float) -> None:
    whole = photo_bytes(suffix)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ImageReadError, match=rf"cut{suffix}: (damaged|not an image)") as raised:
        read_image(path)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds odd
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([".jpg", ".png", ".webp", ".tif", ".bmp", ".gif"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_damage_anywhere_gives_an_image_or_the_one_error(suffix: str, damage: list[tuple[float, int]]) -> None:
    content = bytearray(photo_bytes(suffix))
    for where, value in damage:
        content[int(where**3 * len(content))] = value  # more often in the header
    with contextlib.suppress(ImageReadError):
        read = read_image(io.BytesIO(bytes(content)), max_pixels=10**6)
        assert read.dtype == np.uint8
        assert read.shape[2:] == (3,)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "none.jpg").touch()
    with pytest.raises(ImageReadError, match=re.escape(f"{tmp_path / 'none.jpg'}: the file is empty")):
        read_image(tmp_path / "none.jpg")


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("milk, eggs, bread")
    with pytest.raises(ImageReadError, match=r"notes\.jpg: not an image.*JPEG, PNG, WEBP, TIFF, BMP"):
        read_image(tmp_path / "notes.jpg")


def test_a_missing_file_is_the_usual_python_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        read_image(tmp_path / "nowhere.jpg")


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 15_000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(ImageReadError, match=r"bomb\.png: 20000 x 15000 = 300,000,000 pixels.*max_pixels"):
        read_image(path)


def test_the_limit_of_pixels_can_be_set_and_lifted(tmp_path: Path, colours: np.ndarray) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(colours).save(path)
    with pytest.raises(ImageReadError, match=r"6 x 4 = 24 pixels is more than the limit of 23"):
        read_image(path, max_pixels=23)
    assert read_image(path, max_pixels=24).shape == (4, 6, 3)
    assert read_image(path, max_pixels=None).shape == (4, 6, 3)


def test_pillows_own_limit_neither_warns_nor_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").shape == (8, 8, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_folder_lists_its_images_in_natural_order(tmp_path: Path) -> None:
    for name in ["img10.png", "img2.JPG", "Img1.webp", "notes.txt", ".hidden.png"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["Img1.webp", "img2.JPG", "img10.png"]


def test_a_pattern_lists_what_it_matches(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ["a/2.png", "a/b/1.png", "a/3.jpg", "a/x.txt"]:
        (tmp_path / name).touch()
    found = list_images(f"{tmp_path}/**/*.png")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/2.png", "a/b/1.png"]
    assert [path.name for path in list_images(f"{tmp_path}/a/*")] == ["2.png", "3.jpg"]


def test_one_file_is_listed_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "scan[1].raw").touch()
    assert list_images(tmp_path / "scan[1].raw") == [tmp_path / "scan[1].raw"]


def test_an_empty_folder_lists_nothing_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert list_images(tmp_path) == []
    assert list_images(f"{tmp_path}/*.png") == []
    with pytest.raises(
        FileNotFoundError, match=r"gone: no such file or folder\. Give an image, a folder, or a pattern"
    ):
        list_images(tmp_path / "gone")


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=6, unique=True))
def test_numbers_in_names_sort_as_numbers(numbers: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            Path(folder, f"scan{number}.png").touch()
        assert [int(path.stem.removeprefix("scan")) for path in list_images(folder)] == sorted(numbers)


def test_an_rgb_array_is_returned_itself_and_bgr_is_flipped(colours: np.ndarray) -> None:
    assert check_image_array(colours) is colours
    flipped = check_image_array(colours[..., ::-1], "BGR")
    np.testing.assert_array_equal(flipped, colours)
    assert flipped.flags.c_contiguous


def test_a_view_with_strides_becomes_contiguous(colours: np.ndarray) -> None:
    assert check_image_array(colours[:, ::-1]).flags.c_contiguous


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, r"got None\. OpenCV's imread gives None.*check the path"),
        ("photo.jpg", r"got the path 'photo\.jpg'\. Read it first"),
        (Image.new("RGB", (2, 2)), r"got a Pillow image\. Convert it: np\.asarray"),
        ([[1, 2], [3, 4]], r"got builtins\.list\. Convert it to a numpy array"),
        (np.zeros((5, 6), np.uint8), r"got shape \(5, 6\), a grey image.*np\.stack"),
        (np.zeros((5, 6, 1), np.uint8), r"got shape \(5, 6, 1\), a grey image.*np\.repeat"),
        (np.zeros((5, 6, 4), np.uint8), r"got shape \(5, 6, 4\), with an alpha channel.*\[\.\.\., :3\]"),
        (np.zeros((3, 5, 6), np.uint8), r"got shape \(3, 5, 6\), channels first.*transpose\(1, 2, 0\)"),
        (np.zeros((3, 5, 6), np.float32), r"got shape \(3, 5, 6\), channels first"),
        (np.zeros((1, 5, 6, 3), np.uint8), r"got shape \(1, 5, 6, 3\), a batch.*image\[0\]"),
        (np.zeros((5, 6, 7), np.uint8), r"got shape \(5, 6, 7\)\."),
        (np.zeros((5, 0, 3), np.uint8), r"got shape \(5, 0, 3\), an empty image"),
        (np.zeros(5, np.uint8), r"got shape \(5,\)\."),
        (np.full((5, 6, 3), 0.5), r"got float64 in 0\.\.1: multiply by 255 and cast to uint8"),
        (np.full((5, 6, 3), 200.0, np.float32), r"got float32 in 0\.\.255: cast to uint8"),
        (np.full((5, 6, 3), -1.5, np.float32), r"got float32 from -1\.5 to -1\.5: scale it to 0\.\.255"),
        (np.full((5, 6, 3), 255, np.int64), r"got int64 in 0\.\.255: cast to uint8"),
        (np.full((5, 6, 3), 9000, np.uint16), r"got uint16\. Scale it to 8 bits"),
        (np.ones((5, 6, 3), bool), r"got bool\. Scale it"),
        (np.ones((5, 6, 3), complex), r"got complex128\."),
    ],
)
def test_a_wrong_array_is_told_what_came_and_what_to_do(image: object, words: str) -> None:
    with pytest.raises(ValueError, match=r"^image must be a numpy array of shape \(H, W, 3\) and type uint8, " + words):
        check_image_array(image)


def test_an_unknown_channel_order_is_refused(colours: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r'image_format must be "RGB" or "BGR", got \'RGBA\''):
        check_image_array(colours, "RGBA")
