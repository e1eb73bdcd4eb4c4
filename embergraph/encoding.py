"""Factors as numbers: codes with the names of their levels, and indicator columns."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped


def levels_of(name: str, values: Any, cells: Shaped[np.ndarray, " cell"]) -> tuple[Int[np.ndarray, " cell"], list[str]]:
    """Code the labels of the cells.

    Parameters
    ----------
    name
        What the labels are, for messages.
    values
        One label per cell: text, integers, bools, or a pandas Categorical (Series, array or index).
    cells
        Names of the cells.

    Returns
    -------
    codes : Int[np.ndarray, " cell"]
        Position of each cell's level.
    levels : list of str
        Categories in their order, used or not; else ``False, True`` for bools; else the sorted distinct labels.

    Raises
    ------
    DataError
        If a label is missing, the number of labels is wrong, or the labels are neither text nor integers nor bools.
    """
    if isinstance(values, str) or np.ndim(values) != 1 or len(values) != len(cells):
        found = f"the text '{values}'" if isinstance(values, str) else f"of shape {np.shape(values)}"
        raise DataError(f"{name} is {found}; wanted {len(cells)} labels, one per cell of expression")
    values = getattr(values, "cat", values)  # the accessor of a Series of categories
    if hasattr(values, "categories"):
        codes = np.asarray(values.codes, dtype=np.int64)
        _refuse_missing(name, codes < 0, cells)
        return codes, [str(level) for level in values.categories]
    _refuse_missing(name, _missing(values), cells)
    array = _uniform(name, np.asarray(values))
    if array.dtype.kind == "b":
        return array.astype(np.int64), ["False", "True"]
    levels, codes = np.unique(array, return_inverse=True)
    return codes.astype(np.int64), [str(level) for level in levels]


def encode_columns(
    table: Any, columns: Iterable[str], cells: Shaped[np.ndarray, " cell"]
) -> tuple[Float[np.ndarray, "cell covariate"], list[str]]:
    """Numbers for the columns of a table: numeric ones as they are, factors as indicators of all levels.

    Parameters
    ----------
    table
        Data frame, or mapping from a column's name to one value per cell.
    columns
        The columns to take, in this order.
    cells
        Names of the cells.

    Returns
    -------
    values : Float[np.ndarray, "cell covariate"]
        One column per numeric column, one per level of a factor.
    names : list of str
        The column's name, or ``column[level]``.

    Raises
    ------
    DataError
        If a column is unknown, has missing values, or holds something else than numbers, text or bools.
    """
    columns = list(columns)
    unknown = [column for column in columns if column not in table]
    if unknown:
        raise DataError(f"covariates not in the table: {listed(unknown)}; found {listed(table)}")
    blocks, names = [np.empty((len(cells), 0))], []
    for column in columns:
        values = table[column]
        values = values if hasattr(values, "dtype") else np.asarray(values)
        if values.ndim != 1:
            raise DataError(f"covariate '{column}' has shape {values.shape}; wanted one column of that name")
        if getattr(values.dtype, "kind", "O") in "iuf":
            _refuse_missing(f"covariate '{column}'", _missing(values), cells)
            blocks.append(np.asarray(values, dtype=np.float64)[:, None])
            names.append(str(column))
        else:
            codes, levels = levels_of(f"covariate '{column}'", values, cells)
            blocks.append(np.eye(len(levels))[codes])
            names.extend(f"{column}[{level}]" for level in levels)
    return np.concatenate(blocks, axis=1), names


def encode_like(
    table: Any, names: Sequence[str], cells: Shaped[np.ndarray, " cell"]
) -> Float[np.ndarray, "cell covariate"]:
    """Numbers for the columns of a table in the columns of an earlier encoding, whatever levels occur here.

    Parameters
    ----------
    table
        Data frame, or mapping from a column's name to one value per cell; further columns are not looked at.
    names
        Columns that `encode_columns` made: ``column``, or ``column[level]`` of a factor. A table that has a column of
        this very name is taken as encoded.
    cells
        Names of the cells.

    Returns
    -------
    Float[np.ndarray, "cell covariate"]
        One column per name.

    Raises
    ------
    DataError
        If a column is missing or not of the kind that it was, a factor has a level that it did not have, or as in
        `encode_columns`.
    """
    factors = {name: column for name in names if name not in table and (column := column_of(name, table))}
    missing = [name for name in names if name not in table and name not in factors]
    if missing:
        raise DataError(f"covariates: found columns {listed(table)}; wanted {listed(missing)} among them")
    blocks: dict[str, np.ndarray] = {}
    for name in names:
        if name not in factors:
            blocks[name], found = encode_columns(table, [name], cells)
            if found != [name]:
                raise DataError(f"covariate '{name}' holds {listed(found)}; wanted numbers, as in the fit")
    for column in dict.fromkeys(factors.values()):
        own = {name[len(column) + 1 : -1]: name for name in names if factors.get(name) == column}
        values = table[column]
        values = values if hasattr(values, "dtype") else np.asarray(values)
        codes, levels = levels_of(f"covariate '{column}'", values, cells)
        unknown = [level for i, level in enumerate(levels) if level not in own and (codes == i).any()]
        if unknown:
            raise DataError(f"covariate '{column}' has levels {listed(unknown)}; wanted some of {listed(own)}")
        for level, name in own.items():
            code = levels.index(level) if level in levels else -1
            blocks[name] = (codes == code).astype(np.float64)[:, None]
    return np.concatenate([blocks[name] for name in names], axis=1) if names else np.empty((len(cells), 0))


def column_of(name: str, columns: Container[str]) -> str | None:
    """The factor among `columns` that an indicator called ``column[level]`` belongs to."""
    if not name.endswith("]"):
        return None
    starts = [i for i, letter in enumerate(name) if letter == "["]
    return next((name[:i] for i in starts if name[:i] in columns), None)


def factors_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Positions of the columns of every covariate: one, or the indicators ``column[level]`` of a factor."""
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        column = name[: name.index("[")] if name.endswith("]") and "[" in name[1:] else name
        groups.setdefault(column, []).append(i)
    return groups


def _missing(values: Any) -> Bool[np.ndarray, " cell"]:
    if hasattr(values, "isna"):
        return np.asarray(values.isna())
    return np.asarray([value is None or bool(value != value) for value in values])


def _refuse_missing(name: str, missing: Bool[np.ndarray, " cell"], cells: Shaped[np.ndarray, " cell"]) -> None:
    if missing.any():
        raise DataError(
            f"{name} has {int(missing.sum())} missing values, the first at cell '{cells[np.argmax(missing)]}'; "
            "wanted a value for every cell"
        )


def _uniform(name: str, array: Shaped[np.ndarray, " cell"]) -> Shaped[np.ndarray, " cell"]:
    """Labels as one numpy array of text, integers or bools."""
    if array.dtype == object:
        for kind, dtype in ((str, str), ((bool, np.bool_), bool), ((int, np.integer), np.int64)):
            if all(isinstance(value, kind) for value in array):
                return array.astype(dtype)
    elif array.dtype.kind in "UTSbiu":
        return array
    found = {type(value).__name__ for value in array} if array.dtype == object else {array.dtype}
    raise DataError(f"{name} holds {', '.join(sorted(map(str, found)))}; wanted all text, all integers or all bools")
