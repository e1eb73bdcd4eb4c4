"""What a report is made of before it becomes text or HTML: sections of paragraphs, facts, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

ColumnKind = Literal["text", "code", "number", "verdict"]


@dataclass(frozen=True)
class Paragraph:
    """A few sentences; `command` is a line of code that belongs to them."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Facts:
    """Terms and what is known of them."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, and what its cells are."""

    name: str
    kind: ColumnKind = "text"


@dataclass(frozen=True)
class Table:
    """A table of texts; every row has one text a column."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Image:
    """A picture as a PNG file, `width` x `height` inches on paper."""

    title: str
    alt: str
    png: bytes
    width: float
    height: float


Block: TypeAlias = Paragraph | Facts | Table | Image


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading; `key` names it in links."""

    key: str
    title: str
    blocks: tuple[Block, ...]


def fixed(values: Sequence[float]) -> list[str]:
    """Numbers of one column, with as many decimals as give the largest three digits; words where there is no number."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    largest = max(sizes, default=1.0)
    if not 1e-3 < largest < 1e6:
        return [number(value, 3) for value in values]
    decimals = min(4, max(0, 2 - math.floor(math.log10(largest))))
    return [
        f"{round(value, decimals) + 0.0:.{decimals}f}" if math.isfinite(value) else number(value) for value in values
    ]


def number(value: Any, digits: int = 4) -> str:
    """A number for people: no exponents where they can be done without, and words where there is no number."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value)}"
    value = float(value)
    if math.isnan(value):
        return "not defined"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if value.is_integer() and abs(value) < 1e9:
        return f"{value:.0f}"
    if 10**digits <= abs(value) < 1e9:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def names(values: Iterable[Any], most: int = 8) -> str:
    """The first of some names, and how many more there are."""
    texts = [str(value) for value in values]
    if len(texts) <= most + 1:
        return ", ".join(texts)
    return f"{', '.join(texts[:most])} and {len(texts) - most} more"


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def sizes_text(dims: Sequence[Any], sizes: Sequence[int]) -> str:
    """Sizes with dims, as text."""
    if not dims:
        return "one number"
    return f"{' × '.join(map(str, sizes))} ({' × '.join(map(str, dims))})"
