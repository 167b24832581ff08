"""The rows of the architecture (docs/design): imports point down or sideways, never in a circle, never to the root."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "segment_anything"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE

ROWS = [
    (
        "geometry",
        "masks geometry images utils.transforms _optional _onnxruntime _download _weight_file _namesakes _whole_file "
        "_side_by_side",
    ),
    (
        "values",
        "_tiles prompts embedding _embedding_file records record_formats label_map utils.amg _amg_options _amg_clicks",
    ),
    ("network", "modeling"),
    ("construct", "architectures build_sam checkpoints utils.onnx _recognise"),
    ("one image", "predictor simulate visualize detectors text datasets _drawing"),
    (
        "whole image",
        "automatic_mask_generator _amg_attributes _amg_values _amg_selection _amg_fast _amg_cuda _amg_filters "
        "grounding export onnx fastsam interchange _transformers_layout",
    ),
    ("learn, measure", "training evaluation"),
    ("engines", "data_engine batch"),
    ("people", "annotator serve"),
    ("verbs", "cli __main__"),
]
"""From the bottom up; a module imports only from its own row and from the rows before."""

CONFINED = {
    "onnxruntime": ("_onnxruntime",),
    "safetensors": ("_weight_file", "_embedding_file", "checkpoints", "interchange", "training"),
    "onnx": ("export", "onnx", "utils.onnx"),
    "onnxscript": ("export", "onnx", "utils.onnx"),
    "transformers": ("text", "detectors", "grounding"),
    "matplotlib": ("visualize", "evaluation", "training"),
    "scipy": ("simulate", "masks", "datasets", "evaluation", "training"),
    "pycocotools": ("datasets", "evaluation"),
    "faster_coco_eval": ("evaluation",),
    "tensorboard": ("training",),
    "typer": ("cli",),
    "rich": ("cli",),
    "fastapi": ("annotator", "serve"),
    "uvicorn": ("annotator", "serve"),
    "ray": ("batch",),
    "peft": ("training",),
    "triton": ("modeling.cuda.attention_kernels", "modeling.cuda.mask_kernels"),
}
"""Libraries, and the modules that may import them."""

AT_THE_TOP = {"torch", "numpy", "PIL", "tqdm", "safetensors", "typer", "rich"}
"""What installs with the package, and so may be imported where a module is loaded. The rest waits for its use."""

ON_USE = {"modeling.cuda.attention_kernels", "modeling.cuda.mask_kernels"}
"""Modules that are imported on use alone, and so may import their library where they begin."""

NEVER = {"torchvision", "timm", "ultralytics", "cv2"}


@dataclass(frozen=True)
class Import:
    """One import of `target` by `module`, names relative to the package for its own modules."""

    module: str
    target: str
    line: int
    inside: bool
    """Of the package itself."""
    deferred: bool
    """Inside a function, or for type checkers only."""

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules(root: Path) -> dict[str, Path]:
    """Every module below `root` by its name relative to the package; a package's own is that of its folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path, known: set[str]) -> Iterator[Import]:
    """Every import statement, and every call of `require("library", ...)`, in a file."""

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            for name in targets(child):
                inside = name.partition(".")[0] == PACKAGE
                target = own(name) if inside else name.partition(".")[0]
                yield Import(module, target, child.lineno, inside, deferred)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from visit(child, deferred or is_function or for_types)

    def own(name: str) -> str:
        """The module that `segment_anything.a.b.c` names, where the end may be a name inside a module."""
        parts = name.split(".")[1:]
        longest = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((module for module in longest if module in known), "")

    def targets(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} uses a relative import"
            return [f"{node.module}.{a.name}" for a in node.names if (node.module, a.name) != (PACKAGE, "__version__")]
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("require") and node.args:
            first = node.args[0]
            return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
        return []

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), deferred=False)


def all_imports(root: Path) -> list[Import]:
    """Every import of every module, but those of the package root, which shows names from everywhere."""
    found = modules(root)
    return [item for name, path in found.items() if name for item in imports(name, path, set(found))]


def row(module: str) -> int | None:
    """Index in `ROWS`, by the longest name that fits."""
    place = {name: index for index, (_, names) in enumerate(ROWS) for name in names.split()}
    parts = module.split(".")
    fits = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((place[name] for name in fits if name in place), None)


def within(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def upward(found: list[Import]) -> list[str]:
    """Imports of a row above, and of the root."""
    bad = []
    for item in found:
        here, there = row(item.module), row(item.target)
        if item.inside and (not item.target or (here is not None and there is not None and there > here)):
            bad.append(str(item) if item.target else f"{item.module}:{item.line} imports the package root")
    return bad


def strayed(found: list[Import]) -> list[str]:
    """Imports of libraries outside their modules, too early, or at all."""
    allowed_early = AT_THE_TOP | sys.stdlib_module_names
    return [
        str(item)
        for item in found
        if (item.inside and item.target in ON_USE and not item.deferred)
        or (
            not item.inside
            and (
                item.target in NEVER
                or not within(item.module, CONFINED.get(item.target, (item.module,)))
                or (not item.deferred and item.target not in allowed_early and item.module not in ON_USE)
            )
        )
    ]


def circles(found: list[Import]) -> list[str]:
    """Modules that import each other while they load."""
    graph: dict[str, set[str]] = {}
    for item in found:
        is_own_parent = item.module.startswith(item.target + ".")  # a package's file names its siblings through it
        if item.inside and not item.deferred and item.target != item.module and not is_own_parent:
            graph.setdefault(item.module, set()).add(item.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_has_a_row() -> None:
    homeless = [name for name in modules(ROOT) if row(name) is None and name not in ("", "utils")]
    assert homeless == []


def test_imports_point_down_or_sideways() -> None:
    assert upward(all_imports(ROOT)) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(all_imports(ROOT)) == []


def test_libraries_stay_in_their_files_and_optional_ones_wait_for_their_use() -> None:
    assert strayed(all_imports(ROOT)) == []


def tree(folder: Path, **files: str) -> list[Import]:
    """The imports of a package of these files."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return all_imports(folder)


def test_the_checks_find_an_import_that_points_up(tmp_path: Path) -> None:
    found = tree(tmp_path, masks="def f():\n    from segment_anything.predictor import SamPredictor", predictor="")
    assert upward(found) == ["masks:2 imports predictor"]


@pytest.mark.parametrize("text", ["import segment_anything", "from segment_anything import Sam"])
def test_the_checks_find_an_import_of_the_root(tmp_path: Path, text: str) -> None:
    assert upward(tree(tmp_path, predictor=text)) == ["predictor:1 imports the package root"]


def test_the_checks_find_a_circle(tmp_path: Path) -> None:
    found = tree(tmp_path, masks="import segment_anything.images", images="from segment_anything.masks import x")
    assert set(circles(found)) == {"masks", "images"}
    assert circles(tree(tmp_path, images="def f():\n    from segment_anything.masks import x")) == []


@pytest.mark.parametrize(
    "text",
    [
        "import cv2",  # never
        "def f():\n    import onnxruntime",  # another's
        'def f():\n    require("transformers.models", extra="text")',
        "import scipy.ndimage",  # at the top
    ],
)
def test_the_checks_find_a_library_out_of_place(tmp_path: Path, text: str) -> None:
    assert len(strayed(tree(tmp_path, masks=text))) == 1


def test_the_checks_find_kernels_that_are_loaded_before_their_use(tmp_path: Path) -> None:
    folder = tmp_path / "modeling" / "cuda"
    folder.mkdir(parents=True)
    (folder / "mask_kernels.py").write_text("import triton")
    early, late = "from segment_anything.modeling.cuda.mask_kernels import x", "def f():\n    "
    assert strayed(tree(tmp_path, build_sam=late + early)) == []
    assert strayed(tree(tmp_path, build_sam=early)) == ["build_sam:1 imports modeling.cuda.mask_kernels"]


def test_the_checks_allow_a_library_at_its_use_in_its_place(tmp_path: Path) -> None:
    assert strayed(tree(tmp_path, simulate='import torch\ndef f():\n    require("scipy.ndimage", extra="eval")')) == []
