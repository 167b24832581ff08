"""Speed of training steps, and peak memory of the presets.

    python benchmarks/training.py                        nano and vit_b, decoder on cached embeddings; estimates
    python benchmarks/training.py --full                 also steps that train the encoder (vit_b: minutes on a CPU)
    python benchmarks/training.py --models nano --json
    python benchmarks/training.py --models nano --presets cpu 8gb 16gb 24gb 80gb     peak memory of the presets alone

A "round" is one prompt of one object, decoded and differentiated; the paper gives each object 11 of them. Speed does
not depend on the weights, so they are random. bf16 is measured where the processor multiplies in it. Peak memory of the
presets is estimated; what can be measured here (the kernel's high-water mark of resident memory over one step, in a
process of its own; Linux) is put beside the estimate. `--presets` measures a step of each with one round instead of
eleven, which are differentiated one after the other and need no more memory; on the CPU, where activations take what
they take on a GPU and workspaces of kernels differ.
Keep the machine otherwise idle; where it is not, `..._per_cpu_s` (by the processor time of all threads together) says
with OMP_NUM_THREADS=1 what a core of its own would do.
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

GIB = 2**30
OBJECTS, ROUNDS = 8, 3
SIZE_HW = (400, 512)


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (highest since the last reset) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark is for Linux")


def measure_step(
    name: str,
    train: str,
    precision: str,
    repeats: int,
    *,
    images: int = 1,
    objects: int = OBJECTS,
    rounds: int = ROUNDS,
    checkpointing: bool = False,
    as_gpu: bool = False,
) -> dict[str, Any]:
    """Time one training step of some images with some objects each. Runs in a child process.

    With `as_gpu` as many objects are decoded together as on a GPU, which needs the memory of all of them.
    """
    import numpy as np
    import torch

    from segment_anything.build_sam import load_sam
    from segment_anything.datasets import Dataset
    from segment_anything.training.allocator import keep_freed_memory
    from segment_anything.training.augment import NO_AUGMENTATION
    from segment_anything.training.finetune_options import FinetuneOptions
    from segment_anything.training.memory import estimate_memory
    from segment_anything.training.options import LoopOptions
    from segment_anything.training.prepare import checkpoint_blocks, choose_trained
    from segment_anything.training.rounds import AT_ONCE
    from segment_anything.training.sam_task import SamTask, Trainee
    from segment_anything.training.sources import EmbeddingSource, Frame, ImageSource, TrainingItem
    from segment_anything.training.validation import Validation

    if as_gpu:
        AT_ONCE["cpu"] = AT_ONCE["cuda"]
    options, _ = FinetuneOptions(
        preset="cpu", train=train, rounds=rounds, objects=objects, precision=precision, checkpointing=checkpointing
    ).filled(LoopOptions(), None)
    if not options.recomputes:
        keep_freed_memory()  # as the commands do
    sam = load_sam(name, checkpoint="random", device="cpu")
    choose_trained(sam, train, 8)
    if options.recomputes:
        checkpoint_blocks(sam.image_encoder)
    frame, empty = Frame(sam.image_size, sam.mask_input_size), Dataset(Path(), "none", ())
    source: EmbeddingSource | ImageSource = ImageSource(empty, frame, NO_AUGMENTATION, objects, 0)
    if train == "decoder":
        source = EmbeddingSource(empty, (), frame, NO_AUGMENTATION, objects, 0)
    task = SamTask(Trainee(sam, None), source, Validation(empty, frame), options, {})
    masks = np.zeros((objects, *SIZE_HW), dtype=bool)
    for number, mask in enumerate(masks):
        top, left = 20 * number % 300, 10 * number % 380
        mask[top : top + 90, left : left + 120] = True
    targets = frame.targets(masks, np.zeros(objects), objects, (0,))
    cells = sam.prompt_encoder.image_embedding_size
    image = torch.randn(1, sam.prompt_encoder.embed_dim, *cells)
    if train != "decoder":
        image = torch.randint(0, 256, (3, *targets.input_size_hw), dtype=torch.uint8)
    batch = [TrainingItem("benchmark", image, targets, seed=number) for number in range(images)]
    task.module.train()
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds, computing = [], []
    for _ in range(repeats + 1):
        task.module.zero_grad(set_to_none=True)
        start, cpu_start = time.perf_counter(), time.process_time()
        task.learn(batch)
        seconds.append(time.perf_counter() - start)
        computing.append(time.process_time() - cpu_start)
    best, best_cpu = (min(values[1:] or values) for values in (seconds, computing))
    estimate = estimate_memory(sam, batch_size=images, objects=objects, precision=precision)
    return {
        "model": name,
        "train": train,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "images_per_s": round(images / best, 3),
        "rounds_per_s": round(images * rounds * objects / best, 1),
        "images_per_cpu_s": round(images / best_cpu, 3),
        "rounds_per_cpu_s": round(images * rounds * objects / best_cpu, 1),
        "step_memory_gib": round((resident_bytes("VmHWM") - before) / GIB, 2),
        "estimated_step_gib": round((estimate.total - estimate.weights - estimate.optimizer) / GIB, 2),
    }


def measure_preset(model: str, preset_name: str) -> dict[str, Any]:
    """Peak memory of one step by a preset, of one round, beside the estimate."""
    from segment_anything.training.finetune_options import PRESETS
    from segment_anything.training.precision import fastest_precision

    preset = PRESETS[preset_name]
    step = in_child(
        name=model,
        train=preset.train,
        precision=fastest_precision(),  # bf16 imitated by a processor takes ten times as long
        repeats=0,
        images=preset.batch_size,
        objects=preset.objects,
        rounds=1,
        checkpointing=preset.checkpointing,
        as_gpu=preset_name != "cpu",
    )
    kept = ("model", "train", "precision", "step_memory_gib", "estimated_step_gib")
    return {"preset": preset_name, "images": preset.batch_size, "objects": preset.objects} | {k: step[k] for k in kept}


def estimate_presets(models: tuple[str, ...]) -> list[dict[str, Any]]:
    """Peak memory of a training step by the presets, without weights and without computing anything."""
    import torch

    from segment_anything.architectures import assemble
    from segment_anything.training.finetune_options import PRESETS, FinetuneOptions
    from segment_anything.training.memory import estimate_memory
    from segment_anything.training.options import LoopOptions
    from segment_anything.training.prepare import checkpoint_blocks, choose_trained

    rows = []
    for name in models:
        for preset_name, preset in PRESETS.items():
            with torch.device("meta"):
                sam = assemble(name)
            choose_trained(sam, preset.train, 8)
            options, _ = FinetuneOptions(preset=preset_name).filled(LoopOptions(), None)
            if options.recomputes:
                checkpoint_blocks(sam.image_encoder)
            estimate = estimate_memory(
                sam, batch_size=preset.batch_size, objects=preset.objects, precision=preset.precision
            )
            rows.append(
                {"model": name, "preset": preset_name, "train": preset.train, "gib": round(estimate.total / GIB, 1)}
            )
    return rows


def in_child(**arguments: Any) -> dict[str, Any]:
    """`measure_step` in a process of its own, so that memory is that of one step."""
    code = f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import training; "
    code += f"print(json.dumps(training.measure_step(**{arguments!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Print one line a measurement, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["nano", "vit_b"])
    parser.add_argument("--full", action="store_true", help="also train the encoder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=[], help="measure the peak memory of these presets alone")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.presets:
        for name, preset in product(given.models, given.presets):
            row = measure_preset(name, preset)
            print(json.dumps(row) if given.json else "  ".join(f"{key} {value}" for key, value in row.items()))
        return
    from segment_anything.training.precision import fastest_precision

    # Where the processor imitates bf16, a step takes ten times as long.
    precisions = ("fp32", "bf16") if fastest_precision() == "bf16" else ("fp32",)
    steps = []
    for name in given.models:
        for train in ("decoder", "all") if given.full else ("decoder",):
            for precision in precisions:
                repeats = given.repeats if name == "nano" or train == "decoder" else 0
                steps.append(in_child(name=name, train=train, precision=precision, repeats=repeats))
                if not given.json:
                    print(*(f"{key} {value}" for key, value in steps[-1].items()), sep="  ")
    presets = estimate_presets(("nano", "vit_b", "vit_l", "vit_h"))
    if given.json:
        print(json.dumps({"steps": steps, "presets": presets}))
        return
    for row in presets:
        print(*(f"{key} {value}" for key, value in row.items()), sep="  ")


if __name__ == "__main__":
    main()
