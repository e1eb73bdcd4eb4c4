"""Sections of a report on data, model, guide, routine and the quality of the fit."""

from __future__ import annotations

import inspect
import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..inference.judgement import limits_text, verdict_of
from .model_lines import SiteLine, fitted_parts, plate_sizes
from .parts import Block, Column, Facts, Paragraph, Section, Table, names, number, plural, sizes_text

if TYPE_CHECKING:
    from ..inference import Fit
from ..inference.export import unwrapped

PACKAGES = ("embergraph", "torch", "pyro-ppl", "numpy", "xarray", "arviz")
INPUTS = ("name", "role", "axes", "numbers", "range", "mean", "missing")
SITES = (
    Column("site", "code"),
    Column("kind"),
    Column("axes"),
    Column("law", "code"),
)
NUMBERS = (
    Column("number", "code"),
    Column("value", "number"),
    Column("judgement", "verdict"),
    Column("limits"),
    Column("meaning"),
)


def data_section(fit: Fit, data: xr.Dataset, test: xr.Dataset | None) -> Section:
    """Inputs with dims, sizes, ranges and missing values, names counted, standardisation."""
    inputs = {name: spec for name, spec in fit.schema.inputs.items() if name in data}
    rows = tuple(_input_row(name, data[name], spec.observed) for name, spec in inputs.items())
    dims = list(dict.fromkeys(str(dim) for name in inputs for dim in data[name].dims))
    facts = [(dim, _names_of(data, dim)) for dim in dims]
    facts.append(("held-out data", "none given" if test is None else _test_text(fit, test)))
    facts.append(("standardisation", _standardisation(data)))
    others = [str(name) for name in data.data_vars if name not in inputs]
    if others:
        facts.append(("riding along", f"{names(others)}: not seen by the model"))
    table = Table("Inputs of the model", tuple(map(Column, INPUTS)), rows)
    blocks: tuple[Block, ...] = (Facts(tuple(facts)), *((table,) if rows else ()))
    return Section("data", "Data", blocks)


def model_section(fit: Fit, lines: list[SiteLine]) -> Section:
    """Sites in order, with plates, shapes and laws; weights that the model holds itself."""
    model = fit.model
    facts = [("model", type(model).__name__ if not inspect.isfunction(model) else model.__name__)]
    facts += _first_line(model)
    plates = plate_sizes(lines)
    facts.append(("plates", ", ".join(f"{name} {size}" for name, size in plates.items()) or "none"))
    fitted = fitted_parts(fit)
    if fitted:
        total = sum(size for _, size in fitted)
        parts = ", ".join(f"{name} {size}" for name, size in fitted)
        facts.append(("weights of its own", f"{total} numbers, point estimates without a posterior ({parts})"))
    if not fit.schema.normalised:
        facts.append(("prior", "not a proper density: it cannot be drawn from"))
    rows = tuple((line.name, line.kind, line.shape, line.law) for line in lines)
    note = Paragraph(
        "Read off one run of the model. A name stands for the value of that site or input; f(a, b) is computed from a "
        "and b by the model; a range is that of a table of given numbers."
    )
    return Section(
        "model",
        "Model",
        (
            Facts(tuple(facts)),
            Table("Generative process, in order: every site given those above it", SITES, rows),
            note,
        ),
    )


def guide_section(fit: Fit, roles: list[tuple[str, str]], lines: list[SiteLine], fixed: list[str]) -> Section:
    """Which family, what each site has, what is held fixed."""
    if fit.guide is None:
        chains, draws = fit.stored.shape
        facts = [("posterior", f"stored draws: {plural(chains, 'chain')} of {draws} draws each")]
        blocks: list[Block] = [Facts((*facts, ("held fixed", ", ".join(fixed) or "nothing")))]
        return Section("guide", "Posterior", tuple(blocks))
    facts = [("guide", type(fit.guide).__name__ if not inspect.isfunction(fit.guide) else fit.guide.__name__)]
    facts += _first_line(fit.guide)
    facts.append(("held fixed", ", ".join(fixed) or "nothing"))
    known = {line.name for line in lines}
    summed = [line.name for line in lines if line.kind == "enumerated" and line.name not in dict(roles)]
    rows = [(name, role) for name, role in roles if name in known]
    rows += [(name, "summed out exactly; drawn given the rest where it is asked for") for name in summed]
    grouped = {role: ", ".join(name for name, own in rows if own == role) for _, role in rows}
    columns = (Column("sites", "code"), Column("posterior"))
    table = Table("What the guide has for every site", columns, tuple((sites, role) for role, sites in grouped.items()))
    return Section("guide", "Guide", (Facts(tuple(facts)), table))


def routine_section(fit: Fit) -> Section:
    """Routine and settings."""
    told = {key: _setting(value) for key, value in fit.settings.items()}
    if fit.settings.get("tolerance") is None and fit.settings.get("converged") is False:
        told["converged"] = "not asked for: all steps were made"
    rows = tuple((key, value) for key, value in told.items() if value)
    return Section("routine", "Routine", (Facts((*rows, ("device", str(fit.device)))),))


def quality_table(table: xr.Dataset) -> Table:
    """Numbers of `Fit.report` with judgement and meaning."""
    rows = []
    for name, row in table.data_vars.items():
        rows.append((str(name), number(row), verdict_of(row), limits_text(row), str(row.attrs.get("meaning", ""))))
    return Table("What is known of the quality of the fit", NUMBERS, tuple(rows))


def versions(made: str) -> dict[str, str]:
    """Versions of what a report was made with, and when."""
    rows = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            rows[package] = version(package)
        except PackageNotFoundError:
            rows[package] = "not installed"
    return {**rows, "made": made}


def held_fixed(tree_attrs: Mapping[str, Any]) -> list[str]:
    """Sites that are the same in every draw, from the attributes of a posterior."""
    return list(map(str, json.loads(tree_attrs.get("held_fixed", "[]"))))


def _input_row(name: str, values: xr.DataArray, observed: bool) -> tuple[str, ...]:
    array = values.values
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    missing = int(array.size - finite.size)
    span = f"{number(finite.min())} to {number(finite.max())}" if finite.size else "no numbers"
    mean = number(float(finite.astype(float).mean()), 3) if finite.size else "no numbers"
    role = "observed" if observed else "given"
    axes = sizes_text(values.dims, values.shape)
    return name, role, axes, str(array.dtype), span, mean, str(missing) if missing else "none"


def _names_of(data: xr.Dataset, dim: str) -> str:
    if dim not in data.coords:
        return f"{data.sizes[dim]} without names"
    labels = data[dim].values
    return f"{len(labels)}: {names(labels)}"


def _test_text(fit: Fit, test: xr.Dataset) -> str:
    observed = [name for name in fit.schema.observed if name in test] or list(test.data_vars)[:1]
    return sizes_text(test[observed[0]].dims, test[observed[0]].shape) if observed else "without observed variables"


def _standardisation(data: xr.Dataset) -> str:
    mark = data.attrs.get("standardized")
    parts = ["as given (no mark of a standardisation)" if mark is None else str(mark)]
    for name in ("expression_center", "expression_scale"):
        if name in data:
            values = data[name].values
            low, high = number(values.min(), 3), number(values.max(), 3)
            what = "centres" if name.endswith("center") else "scales"
            parts.append(f"{what} {low}" if low == high else f"{what} {low} to {high}")
    return "; ".join(parts)


def _first_line(thing: Any) -> list[tuple[str, str]]:
    """The first line of a docstring, if it was written for the thing itself."""
    thing = unwrapped(thing)
    own = thing if inspect.isfunction(thing) or inspect.ismethod(thing) else type(thing)
    text = own.__doc__ if isinstance(getattr(own, "__doc__", None), str) else None
    module = inspect.getmodule(own)
    line = _sentence(text)
    if "this module's docstring" in line or "top of this module" in line:
        line = _sentence(module.__doc__ if module else None)
    return [("what it is", line)] if line else []


def _sentence(docstring: str | None) -> str:
    """The first sentence of a docstring without its markup."""
    text = " ".join((docstring or "").strip().split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "").replace("`", "")
    return re.split(r"(?<=[.!?]) ", text)[0]


def _setting(value: Any) -> str:
    """A setting as text; empty where it says nothing or more than a line can hold."""
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, float | np.floating):
        return number(value, 6)
    if isinstance(value, bool | int):
        return number(value)
    if isinstance(value, list | tuple):
        texts = [_setting(part) or "none" for part in value]
        return names(texts, 6)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_setting(part) or 'none'}" for key, part in value.items() if not _is_long(part))
    return str(value)


def _is_long(value: Any) -> bool:
    return isinstance(value, Mapping | list) and len(value) > 4
