"""A report as one HTML file that needs nothing else: no scripts, no network."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

from .parts import Block, Facts, Image, Paragraph, Section, Table
from .style import STYLE

VERDICTS = {"good": ("●", "good"), "look": ("▲", "look"), "bad": ("■", "bad")}

MANY = 9
WIDE, LARGE = 2.1, 8.0


def as_page(
    title: str, subtitle: str, counts: dict[str, int], warnings: Sequence[str], sections: Sequence[Section]
) -> str:
    """A whole document."""
    body = _body(title, subtitle, counts, warnings, sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}: embergraph report</title>\n<style>\n{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _body(
    title: str, subtitle: str, counts: dict[str, int], warnings: Sequence[str], sections: Sequence[Section]
) -> str:
    links = "".join(f'<li><a href="#{s.key}">{escape(s.title)}</a></li>' for s in sections)
    parts = "\n".join(_section(section) for section in sections)
    return (
        f'<div class="report">\n<header>\n<p class="over">embergraph report</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="sub">{escape(subtitle)}</p>\n{_scores(counts)}</header>\n{_warnings(warnings)}'
        f'<div class="columns">\n<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n{parts}\n</main>\n</div>\n'
        "</div>"
    )


def as_fragment(title: str, page: str) -> str:
    """A page for a notebook: in a frame of its own, so that neither style changes the other."""
    frame = "width:100%;height:720px;border:1px solid #ccc;border-radius:6px"
    return f'<iframe title="{escape(title)}: embergraph report" style="{frame}" srcdoc="{escape(page)}"></iframe>'


def _scores(counts: dict[str, int]) -> str:
    words = {"good": "good", "look": "to look at", "bad": "bad"}
    tiles = "".join(
        f'<li class="{key if counts.get(key) else "zero"}"><b>{counts.get(key, 0)}</b> '
        f"<span>{VERDICTS[key][0]} {word}</span></li>"
        for key, word in words.items()
    )
    return f'<ul class="scores" aria-label="Numbers by judgement">{tiles}</ul>\n'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return '<section class="warnings none"><h2>Warnings</h2><p>None.</p></section>\n'
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<section class="warnings" id="warnings"><h2>Warnings</h2><ul>{items}</ul></section>\n'


def _section(section: Section) -> str:
    blocks, images = [], [block for block in section.blocks if isinstance(block, Image)]
    for block in section.blocks:
        if not isinstance(block, Image):
            blocks.append(_block(block))
        elif block is images[0]:
            figures = "\n".join(_image(image) for image in images)
            blocks.append(f'<div class="figures{" one" if len(images) == 1 else ""}">\n{figures}\n</div>')
    inside = "\n".join(blocks)
    return f'<section id="{section.key}">\n<h2>{escape(section.title)}</h2>\n{inside}\n</section>'


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        command = f"<pre><code>{escape(block.command)}</code></pre>" if block.command else ""
        return f"<p>{escape(block.text)}</p>{command}"
    if isinstance(block, Facts):
        pairs = (f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in block.rows)
        rows = "".join(f"<div>{pair}</div>" for pair in pairs)
        many = ' class="many"' if len(block.rows) > MANY else ""
        return f"<dl{many}>{rows}</dl>"
    return _table(block) if isinstance(block, Table) else _image(block)


def _image(image: Image) -> str:
    data = base64.b64encode(image.png).decode("ascii")
    wide = ' class="wide"' if image.width > min(WIDE * image.height, LARGE) else ""
    width, height = (round(96 * inches) for inches in (image.width, image.height))
    return (
        f'<figure{wide}><img alt="{escape(image.alt)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}"><figcaption>{escape(image.title)}</figcaption></figure>'
    )


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col" class="{c.kind}">{escape(c.name)}</th>' for c in table.columns)
    rows = []
    for row in table.rows:
        cells = [
            _cell(text, column.kind, column.name, first=i == 0)
            for i, (text, column) in enumerate(zip(row, table.columns, strict=True))
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><caption>{escape(table.caption)}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(text: str, kind: str, head: str, *, first: bool) -> str:
    inside = escape(re.sub(r"(?<!\w)-(?=[\d.])", "\N{MINUS SIGN}", text) if kind == "number" else text)
    if kind == "verdict" and text:
        mark, word = VERDICTS[text]
        inside = f'<span class="chip {text}">{mark} {word}</span>'
    elif kind == "code":
        inside = f"<code>{inside}</code>"
    tag = 'th scope="row"' if first else "td"
    return f'<{tag} class="{kind}" data-head="{escape(head)}">{inside}</{tag.split()[0]}>'
