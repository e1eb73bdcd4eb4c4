"""A report as plain text of at most 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .parts import Block, Facts, Image, Paragraph, Section, Table

WIDTH = 120
MARKS = {"good": "good", "look": "LOOK", "bad": "BAD", "": ""}
GAP = 2
LEAST = 12


def as_text(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The whole report."""
    lines = [title, "=" * min(len(title), WIDTH), *textwrap.wrap(summary, WIDTH)]
    for section in sections:
        lines += ["", section.title, "-" * len(section.title)]
        for place, block in enumerate(section.blocks):
            lines += ([""] if place else []) + _block(block)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, Paragraph):
        lines = textwrap.wrap(block.text, WIDTH)
        return lines + ([f"    {block.command}"] if block.command else [])
    if isinstance(block, Facts):
        return _facts(block)
    if isinstance(block, Table):
        return _table(block)
    return _image(block)


def _image(image: Image) -> list[str]:
    return textwrap.wrap(f"[picture] {image.title}. {image.alt}", WIDTH)


def _facts(facts: Facts) -> list[str]:
    width = min(max((len(term) for term, _ in facts.rows), default=0), 40)
    lines = []
    for term, text in facts.rows:
        wrapped = _wrap(text, WIDTH - width - GAP)
        head = _wrap(term, width)
        for i in range(max(len(head), len(wrapped))):
            left = head[i] if i < len(head) else ""
            lines.append(f"{left:<{width}}{' ' * GAP}{wrapped[i] if i < len(wrapped) else ''}")
    return lines


def _table(table: Table) -> list[str]:
    rows = [tuple(column.name for column in table.columns)]
    for row in table.rows:
        kinds = (column.kind for column in table.columns)
        rows.append(tuple(MARKS[cell] if kind == "verdict" else cell for cell, kind in zip(row, kinds, strict=True)))
    widths = _widths(rows)
    lines = [*textwrap.wrap(table.caption, WIDTH)]
    for place, row in enumerate(rows):
        cells = [_wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for i in range(max(map(len, cells))):
            parts = [
                f"{cell[i] if i < len(cell) else '':{'>' if column.kind == 'number' else '<'}{width}}"
                for cell, width, column in zip(cells, widths, table.columns, strict=True)
            ]
            lines.append((" " * GAP).join(parts))
        if place == 0:
            lines.append((" " * GAP).join("-" * width for width in widths))
    return lines


def _widths(rows: Sequence[tuple[str, ...]]) -> list[int]:
    """Width of every column: as wide as its cells, the widest made narrower until a line fits."""
    widths = [max(1, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    room = WIDTH - GAP * (len(widths) - 1)
    while sum(widths) > room:
        widest = max(range(len(widths)), key=widths.__getitem__)
        others = sum(widths) - widths[widest]
        widths[widest] = max(LEAST, min(widths[widest] - 1, room - others))
        if max(widths) <= LEAST:
            break
    return widths


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 1), break_on_hyphens=False) or [""]
