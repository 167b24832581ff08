"""List the networks that are known, and which of their weights are on this machine."""

import json
from typing import Annotated, Any

import typer

from segment_anything.cli._console import print_table


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    rows = [_row(name) for name in _names()]
    if as_json:
        print(json.dumps(rows))
        return
    cells = [(row["model"], f"{row['parameters'] / 1e6:.1f} M", str(row["image_size"]), _weights(row)) for row in rows]
    print_table(("model", "parameters", "image size", "weights"), cells)


def _names() -> list[str]:
    from segment_anything.architectures import ARCHITECTURES, entries, parameter_count

    return sorted(ARCHITECTURES, key=lambda name: parameter_count(entries(name)))


def _row(name: str) -> dict[str, Any]:
    from segment_anything.architectures import architecture, entries, parameter_count
    from segment_anything.checkpoints import PUBLISHED, CheckpointError, cache_folder, find_published

    remote = PUBLISHED.get(name)
    try:
        path, problem = find_published(name), None
    except CheckpointError as error:
        path, problem = None, str(error)
    return {
        "model": name,
        "parameters": parameter_count(entries(name)),
        "image_size": architecture(name).image_size,
        "path": path and str(path),
        "problem": problem,
        "bundled": remote is None,
        "url": remote and remote.url,
        "size_bytes": remote.size_bytes if remote else path and path.stat().st_size,
        "goes_to": remote and str(cache_folder() / remote.file),
    }


def _weights(row: dict[str, Any]) -> str:
    if row["path"]:
        return f"{row['path']} ({row['size_bytes'] / 1e6:.0f} MB)"
    if row["problem"]:
        return str(row["problem"])
    if row["bundled"]:
        return "missing from this installation"
    return f"not here; fetched at first use ({row['size_bytes'] / 1e6:.0f} MB) from {row['url']}"
