"""What a run leaves behind: JSON, a Markdown table, and where the figures come from. Plots are in `plots.py`."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Provenance:
    """All that is needed to get the same figures again."""

    commit: str
    """Of the source tree, with "+changes" if it has uncommitted ones; the version where there is no tree."""
    model: str
    weights: str
    """Fingerprint of the parameters."""
    data: str
    hardware: str
    torch: str
    date: str
    """UTC, ISO 8601, to the second."""
    seed: int


@dataclass(frozen=True)
class Report:
    """Figures of one protocol on one data set."""

    protocol: str
    values: Mapping[str, float]
    provenance: Provenance
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[str] = ()
    """One line for each image that could not be used."""
    total_images: int = 0
    """Images of the data set, measured or not."""

    def json(self) -> str:
        """All of it, as JSON; figures that are no numbers become null."""
        plain = asdict(self) | {"values": {k: v if math.isfinite(v) else None for k, v in self.values.items()}}
        return json.dumps(plain, indent=2)

    def markdown(self) -> str:
        """A title, a table of the figures and one of their origin."""
        lines = [f"# {self.protocol}: {self.provenance.model} on {self.provenance.data}", ""]
        done = int(self.values.get("images", 0))
        if done + len(self.skipped) < self.total_images:
            lines += [f"Incomplete: {done + len(self.skipped)} of {self.total_images} images.", ""]
        lines += table(("figure", "value"), [(name, number(value)) for name, value in self.values.items()])
        lines += ["", *table(("origin", ""), [(name, str(value)) for name, value in asdict(self.provenance).items()])]
        if self.skipped:
            lines += ["", f"{len(self.skipped)} images could not be used:", "", *(f"- {line}" for line in self.skipped)]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `<protocol>.json` and `<protocol>.md` into a folder, which is made; their paths."""
        home = Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        files = [home / f"{self.protocol}.json", home / f"{self.protocol}.md"]
        for file, text in zip(files, (self.json(), self.markdown()), strict=True):
            file.write_text(text, encoding="utf-8")
        return files


def number(value: float) -> str:
    """Counts as they are, everything else with four digits; a dash for what is no number."""
    if not math.isfinite(value):
        return "–"
    return str(int(value)) if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *cells)]


def provenance(*, model: str, weights: str, data: str, seed: int, device: torch.device | None = None) -> Provenance:
    """Note where figures come from, now and on this machine."""
    return Provenance(
        commit=_commit(),
        model=model,
        weights=weights,
        data=data,
        hardware=_hardware(device or torch.device("cpu")),
        torch=torch.__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
    )


def _commit() -> str:
    here = Path(__file__).resolve().parent
    with suppress(OSError, subprocess.SubprocessError):
        # no git here, or no repository: an installed package, which its version names
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        # A package installed somewhere inside an unrelated repository does not belong to its commit.
        tracked = _git(here, "ls-files", Path(__file__).name)
        if head and tracked:
            return head + ("+changes" if _git(here, "status", "--porcelain", "--", "..") else "")
    try:
        return f"version {metadata.version('segment-anything-engine')}"
    except metadata.PackageNotFoundError:
        return "unknown"


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads, {platform.system()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
