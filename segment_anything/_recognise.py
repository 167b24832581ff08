"""Which network a set of named tensors is for, what is wrong with it, and how to make position tables fit."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor
from torch.nn import functional as F

from segment_anything._weight_file import WeightFile
from segment_anything.architectures import ARCHITECTURES, architecture, entries, parameter_count

Shapes = Mapping[str, tuple[int, ...]]
"""Name and shape of every entry of a state dict."""

FOREIGN = {
    "image_encoder.trunk.": "a SAM 2 checkpoint",
    "detector.backbone.": "a SAM 3 checkpoint",
    "mask_decoder.hf_token.": "an HQ-SAM checkpoint",
    "vision_encoder.": "a SAM in the names of the transformers library",
}
"""Beginnings of names that give away relatives, which this package does not load."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a weight file is, found without loading it."""

    path: str
    format: str
    """`PyTorch` or `safetensors`."""
    size_bytes: int
    model: str | None
    """The network it is for, or None if it is for none of ours."""
    image_size: int | None
    """Side of the square input it is made for, in pixels."""
    parameters: int
    """How many numbers it holds."""
    dtype: str
    """Of most of its numbers: `float32`, `float16`, ..."""
    missing: tuple[str, ...]
    """Entries of the network that it lacks."""
    unexpected: tuple[str, ...]
    """Entries that the network lacks."""
    mismatched: tuple[str, ...]
    """Entries of another shape, as `name is (1, 2), expected (3, 4)`."""
    wrapper: str
    """Key of the trainer's dictionary that holds the weights, or ''."""
    prefix: str
    """What all names begin with beyond the published ones, or ''."""
    published: str
    """`vit_b, SHA-256 verified` for the published file itself, where that was looked at; else ''."""
    relative: str
    """What else it looks like if `model` is None: `a SAM 2 checkpoint`, or ''."""
    training: str = ""
    """Where the training run stood whose state this is, or ''."""

    @property
    def loadable(self) -> bool:
        """Whether it can be loaded into `model` as it is."""
        return self.model is not None and not (self.missing or self.unexpected or self.mismatched)

    def describe(self) -> str:
        """Some lines of text for people."""
        name = self.model or (f"not a model of this package ({self.relative})" if self.relative else "not a known SAM")
        if self.training and not self.loadable:
            name = "the state of a training run; only what is trained is in it"
        lines = [
            f"{self.path}: {name}",
            f"  format      {self.format}, {self.dtype}, {self.size_bytes / 1e6:.1f} MB",
            f"  parameters  {self.parameters:,}",
        ]
        if self.image_size:
            lines.append(f"  image size  {self.image_size}")
        if self.wrapper:
            lines.append(f'  wrapped in  "{self.wrapper}" of a trainer\'s dictionary')
        if self.prefix:
            lines.append(f'  prefix      "{self.prefix}" before every name')
        if self.training:
            lines.append(f"  training    {self.training}; the same command goes on from it")
            lines.append("              for other uses take best.safetensors or last.safetensors beside it")
        if self.published:
            lines.append(f"  published   {self.published}")
        if self.model:
            difference = differences(self.missing, self.unexpected, self.mismatched)
            lines.append(f"  verdict     {difference or f'fits: load_sam({self.model!r}, checkpoint={self.path!r})'}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        return {**asdict(self), "loadable": self.loadable}


def inspect(file: WeightFile, published: str = "") -> CheckpointInfo:
    """Compare a weight file with the network it is for; `published` is what its hash says, if that was looked at."""
    shapes = shapes_of(file.tensors)
    model = recognise(shapes)
    missing, unexpected, mismatched = compare(shapes, entries(model)) if model else ((), (), ())
    numbers = Counter[str]()
    for tensor in file.tensors.values():
        numbers[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return CheckpointInfo(
        path=str(file.path),
        format=file.format,
        size_bytes=file.path.stat().st_size,
        model=model,
        image_size=made_for(file, model) if model else None,
        parameters=parameter_count(shapes),
        dtype=numbers.most_common(1)[0][0],
        missing=missing,
        unexpected=unexpected,
        mismatched=mismatched,
        wrapper=file.wrapper,
        prefix=file.prefix,
        published=published,
        relative=relative_of(shapes),
        training=file.training,
    )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def recognise(shapes: Shapes) -> str | None:
    """The model whose image encoder these entries are (nearly), or None.

    The prompt encoders and decoders of the published models are all alike, so only image encoders are compared.
    """
    given = {name: shape for name, shape in shapes.items() if name.startswith("image_encoder.")}
    best, best_share = None, 0.5
    for model in ARCHITECTURES:
        wanted = {name: shape for name, shape in entries(model).items() if name.startswith("image_encoder.")}
        fits = sum(name in wanted and _interchangeable(name, shape, wanted[name]) for name, shape in given.items())
        share = fits / len(given.keys() | wanted.keys())
        if share > best_share:
            best, best_share = model, share
    return best


def relative_of(shapes: Shapes) -> str:
    """What else entries look like that are none of our models, or ''."""
    return next((what for start, what in FOREIGN.items() if any(name.startswith(start) for name in shapes)), "")


def made_for(file: WeightFile, model: str) -> int:
    """Side in pixels of the input that the weights were made for: by the position table, or as noted in the file."""
    table = file.tensors.get("image_encoder.pos_embed")
    if table is not None and table.ndim == 4 and table.shape[1] == table.shape[2]:
        return int(table.shape[1]) * architecture(model).stride
    written = file.metadata.get("image_size", "")
    return int(written) if written.isdigit() else architecture(model).image_size


def compare(given: Shapes, expected: Shapes) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names missing from `given`, names too much in it, and a phrase for each of another shape.

    Position tables of another length are no difference: they are resampled.
    """
    return (
        tuple(name for name in expected if name not in given),
        tuple(name for name in given if name not in expected),
        tuple(
            f"{name} is {given[name]}, expected {shape}"
            for name, shape in expected.items()
            if name in given and not _interchangeable(name, given[name], shape)
        ),
    )


def _interchangeable(name: str, given: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if given == expected:
        return True
    leaf = name.rpartition(".")[2]
    is_table = (leaf == "pos_embed" and len(expected) == 4) or (leaf in ("rel_pos_h", "rel_pos_w"))
    return is_table and len(given) == len(expected) and given[-1] == expected[-1]


def differences(missing: tuple[str, ...], unexpected: tuple[str, ...], mismatched: tuple[str, ...]) -> str:
    """One line such as `3 keys missing: a, b, c; 1 key unexpected: d`, or ''."""
    parts = []
    for names, what in ((missing, "missing"), (unexpected, "unexpected"), (mismatched, "of another shape")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{len(names)} key{'s'[: len(names) > 1]} {what}: {', '.join(names[:3])}{more}")
    return "; ".join(parts)


def resample_table(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A position table at another size: (1, G, G, C) absolute or (2G - 1, D) relative to `shape`; others are returned.

    Absolute tables are resampled bicubically with antialiasing, relative ones linearly along their axis, as in ViTDet
    (https://arxiv.org/abs/2203.16527), so that the middle row stays the row of distance zero.
    """
    if tuple(table.shape) == shape:
        return table
    if len(shape) == 4:
        square = F.interpolate(table.float().permute(0, 3, 1, 2), size=shape[1:3], mode="bicubic", antialias=True)
        return square.permute(0, 2, 3, 1)
    line = F.interpolate(table.float().T[None], size=shape[0], mode="linear")
    return line[0].T
