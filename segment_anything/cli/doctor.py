"""Say what a checkpoint file is: which network, how stored, what is missing or too much.

The exit status is 1 if a file cannot be loaded as it is.
"""

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Weights: .pth, .pt or .safetensors.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    from segment_anything.checkpoints import inspect_checkpoint

    infos = [inspect_checkpoint(file) for file in files]
    print(json.dumps([info.as_dict() for info in infos]) if as_json else "\n".join(info.describe() for info in infos))
    if not all(info.loadable for info in infos):
        raise typer.Exit(1)
