"""Pre-train a ViT image encoder on images without masks (masked autoencoding).

Three quarters of every image are hidden and must be drawn from the rest. The folder OUT gets best.encoder.safetensors,
from which fine-tuning starts with --encoder-weights.

    segment-anything pretrain --data photos --model vit_b --epochs 100 --out run
    segment-anything finetune --data my-images --model vit_b --checkpoint random --train all
        --encoder-weights run/best.encoder.safetensors --out run2
"""

from pathlib import Path
from typing import Annotated

import typer

from segment_anything.cli._options import Panel, expand_dataclasses
from segment_anything.cli._training import end, load_on_own_device, reported
from segment_anything.training.options import LoopOptions
from segment_anything.training.pretrain_options import PretrainOptions


@expand_dataclasses
def command(
    data: Annotated[Path, typer.Option(metavar="PATH", help="Folder of images, or a data set whose images are used.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run.")],
    options: Annotated[PretrainOptions, Panel("Masked autoencoding")],
    loop: Annotated[LoopOptions, Panel("Training")],
    model: Annotated[str, typer.Option(help="The network whose encoder learns: vit_b, vit_l or vit_h.")] = "vit_b",
    checkpoint: Annotated[str, typer.Option(help="Weights to start from; random for none.")] = "random",
    device: Annotated[str, typer.Option(help="Where to run: auto, cpu, cuda, ...")] = "auto",
) -> None:
    from segment_anything.training.pretrain import pretrain

    with reported():
        sam = load_on_own_device(model, checkpoint, device, options.size)
        result = pretrain(sam, data, out, options, loop)
    end(result.finished, lambda: print(result.summary, end=""))
