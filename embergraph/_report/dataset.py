"""A report as a Dataset that netCDF can hold: texts and finite numbers, nothing that is not defined."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from ..inference.judgement import verdict_of
from .findings import reading_table
from .model_lines import SiteLine
from .parts import Section, Table


def as_dataset_of(
    lines: Sequence[SiteLine],
    roles: Sequence[tuple[str, str]],
    table: xr.Dataset | None,
    readings: dict[str, xr.Dataset],
    warnings: Sequence[str],
    data: Section,
    plate: str,
) -> xr.Dataset:
    """Tables of sites, inputs, numbers, findings and warnings, each along a dim of its own."""
    held = dict(roles)
    sites = {
        "kind": [line.kind for line in lines],
        "axes": [line.shape for line in lines],
        "law": [line.law for line in lines],
        "posterior": [held.get(line.name, "none of its own") for line in lines],
    }
    numbers = _numbers(table)
    parts = [_texts("site", [line.name for line in lines], sites), numbers, _inputs(data)]
    parts += [_findings(readings, plate), _texts("warning", range(len(warnings)), {"text": list(warnings)})]
    return xr.merge(parts).assign_attrs(numbers.attrs)


def _texts(dim: str, labels: Sequence[object], columns: dict[str, list[str]]) -> xr.Dataset:
    variables = {f"{dim}_{name.replace(' ', '_')}": (dim, _array(texts)) for name, texts in columns.items()}
    names = np.asarray(labels) if isinstance(labels, range) else _array([str(label) for label in labels])
    return xr.Dataset(variables, {dim: names})


def _array(texts: Sequence[str]) -> np.ndarray:
    return np.array(texts, dtype=np.str_) if texts else np.empty(0, dtype="U1")


def _numbers(table: xr.Dataset | None) -> xr.Dataset:
    """Defined numbers of the report; the names of the others stand in an attribute."""
    rows = {} if table is None else {str(name): row for name, row in table.data_vars.items()}
    defined = {name: row for name, row in rows.items() if not math.isnan(float(row))}
    dataset = xr.Dataset(
        {
            "value": ("number", np.array([float(row) for row in defined.values()])),
            "judgement": ("number", _array([verdict_of(row) or "none" for row in defined.values()])),
            "meaning": ("number", _array([str(row.attrs.get("meaning", "")) for row in defined.values()])),
        },
        {"number": _array(list(defined))},
    )
    return dataset.assign_attrs(not_defined=", ".join(name for name in rows if name not in defined))


def _inputs(data: Section) -> xr.Dataset:
    tables = [block for block in data.blocks if isinstance(block, Table)]
    if not tables:
        return xr.Dataset()
    names = [row[0] for row in tables[0].rows]
    columns = {
        column.name: [row[place] for row in tables[0].rows] for place, column in enumerate(tables[0].columns) if place
    }
    return _texts("input", names, columns)


def _findings(readings: dict[str, xr.Dataset], plate: str) -> xr.Dataset:
    columns: dict[str, list[str]] = {"reading": [], "entry": [], "shown": []}
    for name, reading in readings.items():
        table = reading_table(name, reading, plate)
        labels = max(1, reading["estimate"].ndim)
        for row in table.rows:
            columns["reading"].append(name)
            columns["entry"].append(", ".join(row[:labels]))
            columns["shown"].append("; ".join(row[labels:]))
    return _texts("finding", range(len(columns["entry"])), columns)
