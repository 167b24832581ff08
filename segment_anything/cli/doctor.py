"""Say what a checkpoint file is: which network, how stored, what is missing or too much.

A file as large as a published one is hashed and compared with it. The exit status is 1 if a file cannot be loaded as it
is.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Weights: .pth, .pt or .safetensors.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    verify: Annotated[bool, typer.Option(help="Hash files that may be published ones (vit_h: some seconds).")] = True,
) -> None:
    from segment_anything.checkpoints import CheckpointError, inspect_checkpoint

    found: list[dict[str, object]] = []
    for file in files:
        try:
            info = inspect_checkpoint(file, verify=verify)
        except CheckpointError as error:  # the other files are looked at all the same
            found.append({"path": str(file), "loadable": False, "error": str(error)})
            if not as_json:
                print(f"Error: {error}", file=sys.stderr)
        else:
            found.append(info.as_dict())
            if not as_json:
                print(info.describe())
    if as_json:
        print(json.dumps(found))
    if not all(one["loadable"] for one in found):
        raise typer.Exit(1)
