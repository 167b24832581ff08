"""What `import segment_anything` promises: names, their laziness, and a warning when somebody else owns the name."""

import inspect
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import segment_anything
from segment_anything._namesakes import namesakes, warn_of_namesakes

NAMES = (Path(__file__).parent / "data" / "public_names.txt").read_text().split()
ORIGINAL = {
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "sam_model_registry",
}


def run(code: str) -> str:
    """Standard output of a fresh interpreter."""
    root = Path(segment_anything.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_those_written_down_and_sorted() -> None:
    assert segment_anything.__all__ == NAMES == sorted(NAMES)


def test_all_names_of_the_original_are_there() -> None:
    assert set(NAMES) >= ORIGINAL


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    value = getattr(segment_anything, name)
    assert name in dir(segment_anything)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__


def test_nothing_heavy_is_loaded_before_its_use() -> None:
    code = (
        "import sys, segment_anything; segment_anything.__version__; print({'torch', 'numpy', 'PIL'} & {*sys.modules})"
    )
    assert run(code) == "set()"


def test_the_original_s_names_load_no_optional_library() -> None:
    heavy = {"scipy", "matplotlib", "pycocotools", "onnx", "onnxruntime", "transformers", "rich", "typer", "pandas"}
    code = (
        f"import sys; from segment_anything import {', '.join(sorted(ORIGINAL))}; print({heavy!r} & {{*sys.modules}})"
    )
    assert run(code) == "set()"


@pytest.mark.parametrize(
    "code",
    [
        "from segment_anything import build_sam",
        "import segment_anything.build_sam; from segment_anything import build_sam",
        "from segment_anything.build_sam import build_sam_vit_b; from segment_anything import build_sam",
        "import segment_anything as s; s.sam_model_registry; build_sam = s.build_sam",
        "from segment_anything import *",
    ],
)
def test_build_sam_is_the_function_and_never_the_module(code: str) -> None:
    assert run(f"{code}; print(type(build_sam).__name__)") == "function"


def test_submodules_are_attributes_as_in_the_original() -> None:
    code = "import segment_anything as s; print(s.modeling.Sam.__name__, s.utils.transforms.ResizeLongestSide.__name__)"
    assert run(code) == "Sam ResizeLongestSide"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'segment_anything' has no attribute 'SamPredictr'"):
        _ = segment_anything.SamPredictr


def distribution(folder: Path, name: str, **files: str) -> None:
    """What an installer leaves of a distribution."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for file, text in files.items():
        (info / file.replace("top_level", "top_level.txt")).write_text(text)


def test_other_owners_of_the_import_name_are_found_by_either_kind_of_list(tmp_path: Path) -> None:
    distribution(tmp_path, "segment_anything", top_level="segment_anything\n")
    distribution(tmp_path, "segment-anything-py", RECORD="x/__init__.py,,\nsegment_anything/__init__.py,,\n")
    distribution(tmp_path, "segment-anything-hq", top_level="segment_anything_hq\n")
    distribution(tmp_path, "other", RECORD="other/segment_anything/__init__.py,,\n")
    distribution(tmp_path, "segment_anything_engine", RECORD="segment_anything/__init__.py,,\n")
    assert namesakes([str(tmp_path)]) == ["segment-anything-py", "segment_anything"]


def test_the_warning_names_the_owners_and_the_cure(tmp_path: Path) -> None:
    distribution(tmp_path, "segment_anything", top_level="segment_anything\n")
    words = (
        r"belongs to segment-anything-engine and segment_anything in .*pip uninstall segment_anything, then reinstall"
    )
    with pytest.warns(UserWarning, match=words):
        warn_of_namesakes([str(tmp_path)])


def test_alone_there_is_no_warning(tmp_path: Path) -> None:
    distribution(tmp_path, "segment_anything_engine", RECORD="segment_anything/__init__.py,,\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_namesakes([str(tmp_path)])
    assert caught == []


def test_the_warning_comes_once_and_points_at_the_line_that_imports(tmp_path: Path) -> None:
    distribution(tmp_path, "segment_anything", top_level="segment_anything\n")
    code = (
        f"import sys, warnings; sys.path.append({str(tmp_path)!r})\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    from segment_anything import ImageGeometry\n"
        "    from segment_anything import ImageReadError\n"
        "print(len(caught), caught[0].filename)"
    )
    assert run(code) == "1 <string>"
