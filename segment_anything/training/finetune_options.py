"""What fine-tuning can be told, and what the presets for common machines say. Imports no torch: help must be quick."""

from dataclasses import dataclass, replace
from pathlib import Path

from segment_anything.training.options import LoopOptions

TRAINED = ("decoder", "lora", "all")
PROMPTS = ("points", "boxes", "both", "none")
PRECISIONS = ("fp32", "bf16")
LOSSES = ("focal", "near")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What fits a machine. `segment-anything finetune` prints the estimated memory of any choice before it starts."""

    memory_gb: float
    """Of the GPU, or of the computer for `cpu`."""
    train: str
    batch_size: int
    accumulate: int
    objects: int
    rounds: int
    precision: str
    checkpointing: bool


def _gpu(
    memory_gb: float, *, train: str, batch_size: int, objects: int, accumulate: int = 1, checkpointing: bool = True
) -> Preset:
    """A preset with the paper's eleven rounds in bf16."""
    return Preset(
        memory_gb=memory_gb,
        train=train,
        batch_size=batch_size,
        accumulate=accumulate,
        objects=objects,
        rounds=11,
        precision="bf16",
        checkpointing=checkpointing,
    )


PRESETS = {
    "cpu": Preset(
        memory_gb=8,
        train="decoder",
        batch_size=1,
        accumulate=1,
        objects=8,
        rounds=4,
        precision="fp32",
        checkpointing=False,
    ),
    "8gb": _gpu(8, train="decoder", batch_size=4, objects=32, checkpointing=False),
    "16gb": _gpu(16, train="lora", batch_size=2, accumulate=2, objects=32),
    "24gb": _gpu(24, train="lora", batch_size=4, objects=32),
    "80gb": _gpu(80, train="all", batch_size=12, objects=64),
}
"""By name. The estimate for vit_h is 7, 14, 21 and 62 GiB on the four GPUs (benchmarks/training.py)."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The images and masks to learn from."""

    data: Path
    """Data set: a folder, COCO JSON, data.yaml or CSV list."""
    format: str = "auto"
    """coco, csv, index, labelmap, labelme, pairs, sa1b, voc or yolo; auto looks."""
    valid_data: Path | None = None
    """Data set to validate on. By default the split valid (or test) of the data, or the last files by name."""
    valid_fraction: float = 0.2
    """Share of the images to validate on where the data set has no splits."""
    max_images: int | None = None
    """Train on this many images only, the first by name."""
    max_valid_images: int | None = 200
    """Validate on at most this many images, evenly spaced by name."""

    def __post_init__(self) -> None:
        for name in ("data", "valid_data"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        for name in ("max_images", "max_valid_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """What is trained, on which prompts, with how much memory."""

    preset: str = "auto"
    """cpu, 8gb, 16gb, 24gb or 80gb: defaults for train, batch_size, accumulate, objects, rounds, precision and
    checkpointing. auto: by the memory of the GPU, or cpu."""
    train: str | None = None
    """decoder (encoder frozen, its embeddings computed once), lora (low-rank changes of both), or all."""
    prompts: str = "both"
    """First prompts in training: points, boxes, both, or none (the whole image, one mask for each class)."""
    rounds: int | None = None
    """Rounds of prompts for each object, 11 in the paper; fewer are faster."""
    objects: int | None = None
    """Objects of each image trained on at once, drawn by lot."""
    classes: bool = False
    """Also learn to tell the class of each mask; kept in a file of its own."""
    augment: bool = True
    """Mirror, scale, crop and colour the training images."""
    flip_vertical: float = 0.0
    """Chance to mirror top and bottom; use 0.5 for microscopes and satellites."""
    views: int | None = None
    """With a frozen encoder: augmented versions of each image to embed, the first as it is. By default 4, or 1 for
    more than 500 images."""
    cache: Path | None = None
    """Folder of embeddings, which runs may share. By default inside the folder of the run."""
    cache_half: bool = False
    """Keep embeddings in half precision: half the disk, nearly the same result."""
    precision: str | None = None
    """fp32 or bf16."""
    checkpointing: bool | None = None
    """Compute encoder blocks twice and keep only their inputs: less memory, a third more time."""
    lora_rank: int = 8
    """Rank of the low-rank changes."""
    drop_path: float = 0.0
    """Largest chance to drop a block of a ViT encoder (0.4 for vit_h in the paper)."""
    encoder_weights: Path | None = None
    """Image encoder to start from, as `pretrain` and `distill` write it, or published MAE weights."""
    loss: str = "focal"
    """focal: the paper's, 20 focal + dice, over the whole image. near: cross-entropy near each object + dice, which
    suits small objects and small models; nano was trained so."""
    valid_objects: int = 16
    """Objects of each image to validate on."""
    paper_only: bool = False
    """Train to the letter of the paper: the single mask never on a first prompt alone, every box with full noise."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("preset", ("auto", *PRESETS)), ("train", TRAINED), ("prompts", PROMPTS), ("precision", PRECISIONS),
            ("loss", LOSSES),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
        for name in ("rounds", "objects", "views", "lora_rank", "valid_objects"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        for name in ("drop_path", "flip_vertical"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")

    def filled(self, loop: LoopOptions, memory_gb: float | None) -> tuple["FinetuneOptions", LoopOptions]:
        """The options with everything that was left open taken from the preset.

        Args:
            loop: its batch size and accumulation are filled too.
            memory_gb: of the GPU, None on a CPU; chooses the preset `auto`.
        """
        name = choose_preset(memory_gb) if self.preset == "auto" else self.preset
        preset = PRESETS[name]
        mine = {key: getattr(preset, key) for key in ("train", "objects", "rounds", "precision", "checkpointing")}
        filled = replace(self, preset=name, **{k: v for k, v in mine.items() if getattr(self, k) is None})
        loop = replace(
            loop,
            batch_size=loop.batch_size or preset.batch_size,
            accumulate=loop.accumulate or (preset.accumulate if loop.batch_size is None else 1),
        )
        return filled, loop

    @property
    def recomputes(self) -> bool:
        """Whether the encoder's blocks are computed again instead of kept; of filled options."""
        return bool(self.checkpointing) and self.train != "decoder"


def choose_preset(memory_gb: float | None) -> str:
    """The largest preset that fits a GPU (its nominal memory is a little less than named), or cpu."""
    if memory_gb is None:
        return "cpu"
    fitting = [name for name, preset in PRESETS.items() if name != "cpu" and preset.memory_gb <= memory_gb * 1.1]
    return max(fitting, key=lambda name: PRESETS[name].memory_gb) if fitting else "8gb"
