"""What the MED-MAGMA benchmarks share: tables, versions, means with errors, and results kept in a file to resume."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

Row = dict[str, Any]
Tables = dict[str, list[Row]]

SIZES = {"50x51": (50, 51), "100x150": (100, 150)}
GRAPHS: dict[str, dict[str, Any]] = {
    "ba1": {"graph": "tree"},
    "ba2": {"graph": "barabasi_albert"},
    "er": {"graph": "erdos_renyi"},
    "band": {"graph": "ring"},
    "block": {"graph": "blocks"},
}


class Results:
    """Measured rows by what was measured; kept as JSON lines, so that a run that was stopped goes on.

    Parameters
    ----------
    file
        Where to keep them; None: nowhere. Delete it after a change of the library.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.found: dict[str, Row] = {}
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                kept = json.loads(line)
                self.found[kept["key"]] = kept["row"]

    def get(self, what: Row, measure: Callable[[], Row]) -> Row:
        """The row of `what`, measured if it is not there."""
        key = json.dumps(what, sort_keys=True)
        if key not in self.found:
            self.found[key] = measure()
            print(what, {name: _short(value) for name, value in self.found[key].items()}, flush=True)
            if self.file is not None:
                with self.file.open("a") as out:
                    out.write(json.dumps({"key": key, "row": self.found[key]}) + "\n")
        return self.found[key]


def machine() -> str:
    names = ("embergraph", "torch", "pyro-ppl", "numpy", "scipy", "scikit-learn", "networkx", "xarray")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {versions}; {platform.machine()}, {torch.get_num_threads()} threads"


def markdown(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(_short(row.get(column, ""))) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"


def both(cell: Any, gene: Any) -> str:
    """Numbers of cells / genes."""
    return f"{cell} / {gene}"


def mean_of(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}".replace("0.", ".", 1) if len(values) else ""


def gain(differences: Sequence[float]) -> str:
    """Mean of paired differences with its standard error."""
    if len(differences) < 2:
        return f"{np.mean(differences):+.3f}"
    return f"{np.mean(differences):+.3f}±{standard_error(differences):.3f}"


def standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def number_range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def names_of(kind: Callable[[str], Any] = str) -> Callable[[str], list[Any]]:
    """Parser of a list with commas."""
    return lambda text: [kind(part) for part in text.split(",") if part]
