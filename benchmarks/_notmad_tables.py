"""What the NOTMAD benchmarks share: tables, versions, medians over seeds, seconds."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import Any

import torch

Row = dict[str, Any]
Tables = dict[str, list[Row]]


def number_range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def machine() -> str:
    names = ("embergraph", "torch", "pyro-ppl", "numpy", "xarray", "arviz")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {versions}; {platform.machine()}, {torch.get_num_threads()} threads"


def markdown(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        lines.append("| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


def summary(rows: list[Row], name: str, how: Any) -> list[Row]:
    numeric = [k for k, v in rows[0].items() if isinstance(v, float)]
    own = [row for row in rows if not isinstance(row["seed"], str)]
    return [{"seed": name, **{key: float(how([row[key] for row in own])) for key in numeric}}]


def since(start: float) -> Row:
    return {"seconds": round(time.perf_counter() - start)}
