"""What every benchmark needs: rows and tables, versions and machine, measured rows that a stopped run goes on from."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

Row = dict[str, Any]
Tables = dict[str, list[Row]]

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch", "pyro-ppl", "numpy", "scipy", "scikit-learn", "networkx", "xarray", "arviz", "pandas",
)  # fmt: skip


class Results:
    """Measured rows by what was measured; kept as JSON lines, so that a run that was stopped goes on.

    Parameters
    ----------
    file
        Where to keep them; None: nowhere. Delete it after a change of the library.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.found: dict[str, Row] = {}
        self.measured_by: dict[str, str] = {}
        self.reused: set[str] = set()
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                kept = json.loads(line)
                self.found[kept["key"]] = kept["row"]
                self.measured_by[kept["key"]] = kept.get("by", "an unknown version")

    def get(self, what: Row, measure: Callable[[], Row]) -> Row:
        """The row of `what`, measured if it is not there."""
        key = json.dumps(what, sort_keys=True, default=str)
        if key in self.measured_by:
            self.reused.add(key)
        if key not in self.found:
            row = measure()
            print(what, {name: short(value) for name, value in row.items()}, flush=True)
            if self.file is not None:
                with self.file.open("a") as out:
                    out.write(json.dumps({"key": key, "row": row, "by": revision()}) + "\n")
            self.found[key] = row
        return self.found[key]

    def origin(self) -> str:
        """Where rows came from that were not measured now; empty if there are none."""
        if not self.reused:
            return ""
        versions = ", ".join(sorted({self.measured_by[key] for key in self.reused}))
        return f"{len(self.reused)} rows were measured earlier, by {versions}, and read from {self.file}."


def markdown(rows: Sequence[Row]) -> str:
    """A table with a column for every name in the rows, in the order of first sight."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(short(row.get(column, ""))) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def short(value: Any) -> Any:
    """Floats with as many digits as can be read."""
    if not isinstance(value, float):
        return value
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def over_seeds(rows: Sequence[Row], name: str, how: Callable[[Any], Any]) -> list[Row]:
    """One row with a statistic over the seeds of every column of floats; rows that sum up others are left out."""
    own = [row for row in rows if not isinstance(row["seed"], str)]
    numeric = [key for key, value in own[0].items() if isinstance(value, float)]
    return [{"seed": name, **{key: float(how([row[key] for row in own])) for key in numeric}}]


def standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def number_range(text: str) -> list[int]:
    """Parser of ``0-9`` or ``3``."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def names_of(kind: Callable[[str], Any] = str) -> Callable[[str], list[Any]]:
    """Parser of a list with commas."""
    return lambda text: [kind(part) for part in text.split(",") if part]


def names_among(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Parser of some of these names with commas; a comma before a space is part of a name."""
    known = list(known)

    def parse(text: str) -> list[str]:
        found = [part for part in re.split(r",(?! )", text) if part]
        strange = [name for name in found if name not in known]
        if strange:
            raise argparse.ArgumentTypeError(f"found {'; '.join(strange)}; wanted some of {'; '.join(known)}")
        return found

    return parse


def file_to_write(text: str) -> Path:
    """Parser of a file in a folder that exists: better said now than after hours."""
    file = Path(text)
    if not file.absolute().parent.is_dir() or file.is_dir():
        raise argparse.ArgumentTypeError(f"found {text}; wanted a file in a folder that exists")
    return file


def spelled(numbers: Sequence[Any]) -> str:
    """What `number_range` and `names_of` read: ``0-9``, or a list with commas."""
    if len(numbers) > 1 and all(isinstance(n, int) and n == numbers[0] + i for i, n in enumerate(numbers)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(str(number) for number in numbers)


def revision() -> str:
    """Version of the library, with the commit where library and benchmark are of one checkout."""
    spec = find_spec("embergraph")
    if spec is None or not Path(spec.origin or "").resolve().is_relative_to(REPOSITORY):
        return f"embergraph {version('embergraph')}, installed apart from the benchmarks"
    found = _said("git", "-C", str(REPOSITORY), "rev-parse", "--show-toplevel", "--short", "HEAD").splitlines()
    if len(found) != 2 or Path(found[0]).resolve() != REPOSITORY:
        return f"embergraph {version('embergraph')}"
    changed = _said("git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no")
    return f"embergraph {version('embergraph')} (commit {found[1]}{', changed' if changed else ''})"


def versions() -> str:
    """Python, the library and what it stands on."""
    found = [f"Python {platform.python_version()}", revision()]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def machine() -> str:
    """Processor, cores, threads, memory and accelerator; no host names."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{_processor()}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}; {gpu}; "
        f"torch with {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    )


def peak_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def in_process(script: str, *arguments: object) -> str:
    """Run a script of ours in a process of its own, so that memory is its own; what it printed."""
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    brand = named[0] if named else _said("sysctl", "-n", "machdep.cpu.brand_string").strip()
    return brand or platform.processor() or "unknown processor"


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
