"""Fine-tune a model on your images and masks.

Reads COCO, SA-1B, labelme, YOLO-seg, PASCAL VOC, label maps, image and mask folders, or a CSV list. By default the
image encoder stays as it is and the rest learns, which a laptop does in minutes. The folder OUT gets best.safetensors
and last.safetensors (checkpoints that every command takes), plot.png, metrics.csv, summary.txt and a TensorBoard log.
Interrupted or killed, the same command goes on.

    segment-anything finetune --data my-images --out run
    segment-anything finetune --data coco/annotations.json --model vit_b --train lora --preset 16gb --out run
    torchrun --nproc-per-node 4 -m segment_anything finetune --data SA-1B --model vit_b --train all --out run
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from segment_anything.cli._options import Panel, expand_dataclasses
from segment_anything.cli._training import StartOptions, end, reported
from segment_anything.training.finetune_options import DataOptions, FinetuneOptions
from segment_anything.training.options import LoopOptions


@expand_dataclasses
def command(
    data: Annotated[DataOptions, Panel("Data")],
    start: Annotated[StartOptions, Panel("Model")],
    finetuning: Annotated[FinetuneOptions, Panel("What is trained")],
    loop: Annotated[LoopOptions, Panel("Training")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    from segment_anything.training.finetune import finetune

    on_a_cpu, _ = finetuning.filled(loop, memory_gb=None)
    with reported():
        result = finetune(start.load(keep_freed=not on_a_cpu.recomputes), data, out, finetuning, loop)
    report = {"finished": result.finished, "before": result.before, "after": result.after, "out": str(out)}
    end(result.finished, lambda: print(json.dumps(report) if as_json else result.summary, end="\n" if as_json else ""))
