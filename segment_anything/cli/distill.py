"""Teach a small image encoder to see as a large one does.

The student's encoder learns the teacher's image embeddings on images without masks; prompt encoder and decoder are the
teacher's. The folder OUT gets best.safetensors, a checkpoint of the student's kind.

    segment-anything distill --data photos --teacher vit_h --student vit_t --out run
    segment-anything finetune --data my-images --model vit_t --checkpoint run/best.safetensors --train all --out run2
"""

from pathlib import Path
from typing import Annotated

import typer

from segment_anything.cli._options import Panel, expand_dataclasses
from segment_anything.cli._training import end, load_on_own_device, reported
from segment_anything.training.options import LoopOptions
from segment_anything.training.pretrain_options import DistillOptions


@expand_dataclasses
def command(
    data: Annotated[Path, typer.Option(metavar="PATH", help="Folder of images, or a data set whose images are used.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run.")],
    options: Annotated[DistillOptions, Panel("Distillation")],
    loop: Annotated[LoopOptions, Panel("Training")],
    teacher: Annotated[str, typer.Option(help="The network to learn from.")] = "vit_h",
    teacher_checkpoint: Annotated[str | None, typer.Option(help="Other weights for the teacher.")] = None,
    student: Annotated[str, typer.Option(help="The network whose encoder learns.")] = "vit_t",
    student_checkpoint: Annotated[str, typer.Option(help="Weights to start from; random for none.")] = "random",
    image_size: Annotated[int | None, typer.Option(help="Side of the input of both, in pixels.")] = None,
    device: Annotated[str, typer.Option(help="Where to run: auto, cpu, cuda, ...")] = "auto",
) -> None:
    from segment_anything.training.distill import distill

    with reported():
        sams = [
            load_on_own_device(name, weights, device, image_size)
            for name, weights in ((teacher, teacher_checkpoint), (student, student_checkpoint))
        ]
        result = distill(sams[0], sams[1], data, out, options, loop)
    end(result.finished, lambda: print(result.summary, end=""))
