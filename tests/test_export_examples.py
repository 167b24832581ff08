"""The C++ and the Node example: run where their libraries are, and give the masks that Python gives."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from exported import export, photo
from PIL import Image

from segment_anything.onnx import OnnxPredictor

pytest.importorskip("onnx")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CLICK = (30, 20)


def save_photo(folder: Path) -> Path:
    """A picture that has to be resized."""
    Image.fromarray(photo(150, 100)).save(folder / "photo.png")
    return folder / "photo.png"


def agreement(mask_file: Path, name: str, image_file: Path) -> float:
    """Share of pixels on which a mask of an example and Python's best mask of the same click agree."""
    predictor = OnnxPredictor(export(name), providers="cpu")
    predictor.set_image(np.asarray(Image.open(image_file)))
    masks, iou, _ = predictor.predict([CLICK], [1])
    return float((masks[iou.argmax()] == (np.asarray(Image.open(mask_file).convert("L")) > 0)).mean())


ROOTS = [Path(root) for root in (os.environ.get("ONNXRUNTIME_ROOT"), "/usr", "/usr/local") if root]
"""Where headers may be: a release of ONNX Runtime or the packages libonnxruntime-dev and libstb-dev."""


def first(paths: list[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def headers() -> tuple[Path, Path]:
    """Folders of ONNX Runtime's and stb's headers, or a skip."""
    runtime = first([root / "include" / sub / "onnxruntime_cxx_api.h" for root in ROOTS for sub in ("", "onnxruntime")])
    stb = first([root / "include" / sub / "stb_image_write.h" for root in ROOTS for sub in ("", "stb")])
    if runtime is None or stb is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and the headers of ONNX Runtime and stb (set ONNXRUNTIME_ROOT)")
    return runtime.parent, stb.parent


def library(folder: Path) -> Path:
    """The library beside the headers, or the one in the Python package, which comes without headers, or a skip."""
    found = first([root / sub / "libonnxruntime.so" for root in ROOTS for sub in ("lib", "lib/x86_64-linux-gnu")])
    if found is not None:
        return found
    package = importlib.util.find_spec("onnxruntime")
    inside = sorted(Path(str(package.origin)).parent.glob("capi/libonnxruntime.so.*")) if package else []
    if not inside:
        pytest.skip("needs libonnxruntime.so (set ONNXRUNTIME_ROOT)")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # found by the linker, and by the program
        (folder / name).symlink_to(inside[0])
    return folder / "libonnxruntime.so"


def build(folder: Path) -> Path:
    """The program, built by CMake as the first lines of CMakeLists.txt say, or by the compiler where CMake is not."""
    runtime, stb = headers()
    found = library(folder)
    if shutil.which("cmake") is None:
        source, flags = EXAMPLES / "cpp" / "segment.cpp", [f"-isystem{runtime}", f"-isystem{stb}", "-std=c++17", "-O1"]
        command = ["g++", *flags, source, "-o", folder / "segment", found, f"-Wl,-rpath,{found.parent}"]
        subprocess.run(command, check=True, capture_output=True)
        return folder / "segment"
    places = {"ONNXRUNTIME_INCLUDE_DIR": runtime, "ONNXRUNTIME_LIBRARY": found, "STB_INCLUDE_DIR": stb}
    definitions = [f"-D{name}={place}" for name, place in places.items()]
    for step in (["-S", EXAMPLES / "cpp", "-B", folder / "build", *definitions], ["--build", folder / "build"]):
        done = subprocess.run(["cmake", *step], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "segment"


def test_the_cpp_example_compiles_without_a_warning() -> None:
    runtime, stb = headers()
    command = [
        "g++",
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-isystem{runtime}",
        f"-isystem{stb}",
    ]
    done = subprocess.run([*command, EXAMPLES / "cpp" / "segment.cpp"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_cpp_example_gives_pythons_mask(tmp_path: Path) -> None:
    program, image, mask = build(tmp_path), save_photo(tmp_path), tmp_path / "mask.png"
    run = [program, export("toy") / "toy", image, *map(str, CLICK), mask]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "predicted IoU" in done.stdout
    assert agreement(mask, "toy", image) > 0.999


@pytest.mark.slow
def test_the_cpp_example_says_what_is_wrong(tmp_path: Path) -> None:
    program, image = build(tmp_path), save_photo(tmp_path)
    for arguments, words in (
        ([], "usage: segment"),
        ([tmp_path / "nowhere", image, "1", "2", "m.png"], "nowhere_encoder"),
    ):
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert words in done.stderr


@pytest.mark.slow
def test_the_node_example_gives_pythons_mask(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    for file in ("package.json", "segment.mjs"):
        shutil.copy(EXAMPLES / "node" / file, tmp_path)
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]  # the scripts fetch CUDA libraries
    try:
        installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm cannot reach its registry")
    if installed.returncode:
        pytest.skip(f"npm could not install: {installed.stderr.strip().splitlines()[-1]}")
    image, mask = save_photo(tmp_path), tmp_path / "mask.png"
    run = ["node", "segment.mjs", export("nano") / "nano.json", image, *map(str, CLICK), mask]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "predicted IoU" in done.stdout
    assert agreement(mask, "nano", image) > 0.999


def test_the_examples_stay_short() -> None:
    assert len((EXAMPLES / "cpp" / "segment.cpp").read_text().splitlines()) < 200
    assert len((EXAMPLES / "node" / "segment.mjs").read_text().splitlines()) < 200
