"""Data in: arrays, data frames or AnnData become one validated xarray Dataset.

Variables of the Dataset
    expression (cell, gene)         float32 or float64
    covariates (cell, covariate)    dtype of the expression; factors as indicator columns ``column[level]``
    environment (cell)              int64, the position of the cell's environment along ``condition``

Names are coordinates of text: ``cell``, ``gene``, ``covariate``, ``condition``. The labels of the environments are the
coordinate ``condition``, and every table with one row per environment has that dim (``descriptors (condition,
feature)``): a Dataset cannot hold a variable ``environment (cell)`` and a dim of the same name. The coordinate stays as
it is when cells are selected, so that codes keep their meaning, and is saved to netCDF with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr
from scipy.sparse import issparse

from ._likeness import encoded, recoded
from .encoding import levels_of
from .models.parts.errors import DataError
from .splitting import random_split, split
from .standardization import Standardizer, standardize
from .validation import check_unique, listed, validate

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int, Real, Shaped

    Names = Sequence[str] | Shaped[np.ndarray, " name"]

__all__ = [
    "AnnDataLike",
    "Standardizer",
    "from_anndata",
    "from_arrays",
    "from_dataframes",
    "random_split",
    "split",
    "standardize",
    "validate",
]


class AnnDataLike(Protocol):
    """What `from_anndata` reads of an object; AnnData has it, and anndata itself is not needed.

    Attributes
    ----------
    X
        Expression, cells by genes, dense or scipy sparse.
    layers
        Other matrices of that shape, by name.
    obs
        Columns of one value per cell, by name.
    obs_names, var_names
        Names of cells and genes.
    """

    X: Any
    layers: Any
    obs: Any
    obs_names: Any
    var_names: Any


def from_arrays(
    expression: Real[np.ndarray, "cell gene"],
    covariates: Real[np.ndarray, "cell covariate"] | None = None,
    *,
    environment: Sequence[object] | Shaped[np.ndarray, " cell"] | None = None,
    gene_names: Names | None = None,
    covariate_names: Names | None = None,
    cell_names: Names | None = None,
    min_cells: int = 2,
) -> xr.Dataset:
    """Build a Dataset from arrays.

    Parameters
    ----------
    expression
        One row per cell, one column per gene. float32 stays, everything else becomes float64; what needs
        no conversion is not copied.
    covariates
        One row per cell; takes the dtype of the expression.
    environment
        One label per cell: text, integers, bools or a pandas Categorical. Levels are the categories in their order,
        used or not; without categories the sorted distinct labels. The Dataset holds positions, whatever the labels.
    gene_names, covariate_names, cell_names
        Names; left out they are ``gene_0``, ``covariate_0``, ``cell_0`` and so on.
    min_cells
        As in `validate`; ``1`` for new cells of a fitted model.

    Returns
    -------
    xr.Dataset
        Validated, with the variables listed at the top of this module.

    Raises
    ------
    DataError
        If shapes, names or values do not serve.
    """
    values = _matrix("expression", ("cell", "gene"), expression)
    values = values if values.dtype == np.float32 else values.astype(np.float64, copy=False)
    num_cells, num_genes = values.shape
    coords = {"cell": _names("cell", cell_names, num_cells), "gene": _names("gene", gene_names, num_genes)}
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {"expression": (("cell", "gene"), values)}
    if covariates is not None:
        table = _matrix("covariates", ("cell", "covariate"), covariates)
        _check_length("covariates", "rows", len(table), num_cells)
        coords["covariate"] = _names("covariate", covariate_names, table.shape[1])
        variables["covariates"] = (("cell", "covariate"), table.astype(values.dtype, copy=False))
    elif covariate_names is not None:
        raise DataError("covariate_names given without covariates; wanted both or neither")
    if environment is not None:
        codes, levels = levels_of("environment", environment, coords["cell"])
        variables["environment"] = (("cell",), codes)
        coords["condition"] = np.asarray(levels, dtype=str)
    return validate(xr.Dataset(variables, coords=coords), min_cells=min_cells)


def from_dataframes(
    expression: pd.DataFrame,
    covariates: pd.DataFrame | None = None,
    *,
    environment: pd.Series | Sequence[object] | None = None,
    like: xr.Dataset | None = None,
    min_cells: int = 2,
) -> xr.Dataset:
    """Build a Dataset from data frames whose rows are cells and whose indices name them.

    Parameters
    ----------
    expression
        One row per cell, one column per gene, all numeric.
    covariates
        The same cells, in any order: rows are matched by name. Numeric columns pass; columns of categories, text or
        bools become indicators ``column[level]`` of all levels (all categories, or both truth values).
    environment
        One label per cell, as in `from_arrays`: a Series is matched by name, anything else follows the rows of the
        expression.
    like
        Data of a fitted model that the new cells go to: its genes are taken, in its order, text becomes its indicators
        whatever levels occur, and environments are coded as there.
    min_cells
        As in `validate`; ``1`` for new cells of a fitted model.

    Returns
    -------
    xr.Dataset
        Validated; cells in the order of the expression.

    Raises
    ------
    DataError
        If the frames hold different cells, `like` has genes, covariates or levels that they lack, or as in
        `from_arrays`.
    """
    cells = _names("cell", expression.index, len(expression))
    check_unique("cell", cells)
    if like is not None:
        columns = np.asarray(expression.columns, dtype=str)
        expression = expression.iloc[:, _columns(like["gene"].values.tolist(), columns, "columns of expression")]
    text = [
        str(column) for column, dtype in zip(expression.columns, expression.dtypes, strict=True) if not _numeric(dtype)
    ]
    if text:
        raise DataError(f"expression has columns that are not numeric: {listed(text)}; wanted one number per cell")
    values = expression.to_numpy()
    if values.dtype == object:  # pandas' nullable numbers
        values = expression.to_numpy(dtype=np.float64, na_value=np.nan)
    table, names = None, None
    if covariates is not None:
        covariates = covariates.iloc[_rows("covariates", covariates.index, cells)]
        table, names = encoded(covariates, covariates.columns, cells, like)
    if environment is not None and hasattr(environment, "iloc"):
        environment = environment.iloc[_rows("environment", environment.index, cells)]
    made = from_arrays(
        values,
        table,
        environment=environment,
        gene_names=expression.columns,
        covariate_names=names,
        cell_names=cells,
        min_cells=min_cells,
    )
    return recoded(made, like)


def from_anndata(
    adata: AnnDataLike,
    *,
    covariates: Sequence[str] = (),
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    environment: str | None = None,
    like: xr.Dataset | None = None,
    min_cells: int = 2,
) -> xr.Dataset:
    """Build a Dataset from an AnnData object, or from anything with the same parts.

    Parameters
    ----------
    adata
        Object with ``X``, ``layers``, ``obs``, ``obs_names`` and ``var_names``.
    covariates
        Columns of ``obs``, encoded as in `from_dataframes`.
    layer
        Name of the layer to take; None takes ``X``. Sparse matrices are made dense.
    genes
        Genes to keep, in this order; None keeps all.
    environment
        Column of ``obs`` with the label of each cell's environment.
    like
        As in `from_dataframes`; `covariates` and `genes` are then those of `like` and are left out.
    min_cells
        As in `validate`; ``1`` for new cells of a fitted model.

    Returns
    -------
    xr.Dataset
        Validated.

    Raises
    ------
    DataError
        If a layer, a gene or a column does not exist, or as in `from_arrays`.
    """
    if like is not None:
        if len(covariates) or genes is not None:
            raise DataError("like: found covariates or genes besides; wanted either, since like has both")
        genes = like["gene"].values.tolist()
    if layer is not None and layer not in adata.layers:
        raise DataError(f"layer '{layer}' is not in the data; found {listed(adata.layers)}")
    matrix = adata.X if layer is None else adata.layers[layer]
    gene_names = np.asarray(adata.var_names, dtype=str)
    if genes is not None:
        columns = _columns(genes, gene_names)
        matrix, gene_names = _take_columns(matrix, columns), gene_names[columns]
    if hasattr(matrix, "toarray"):
        matrix = matrix.toarray()
    cells = _names("cell", adata.obs_names, len(adata.obs_names))
    wanted = [covariates] if isinstance(covariates, str) else list(covariates)
    has_covariates = bool(wanted) if like is None else "covariates" in like
    table, names = encoded(adata.obs, wanted, cells, like) if has_covariates else (None, None)
    if environment is not None and environment not in adata.obs:
        raise DataError(f"environment '{environment}' is not a column of obs; found {listed(adata.obs)}")
    made = from_arrays(
        matrix,
        table,
        environment=None if environment is None else adata.obs[environment],
        gene_names=gene_names,
        covariate_names=names,
        cell_names=cells,
        min_cells=min_cells,
    )
    return recoded(made, like)


def _matrix(name: str, dims: tuple[str, str], values: Any) -> Real[np.ndarray, "row column"]:
    if hasattr(values, "columns"):
        raise DataError(f"{name} is a data frame; from_arrays would lose its names, wanted from_dataframes")
    array = values.toarray() if issparse(values) else np.asarray(values)
    if array.ndim != 2:
        raise DataError(f"{name} has shape {array.shape}; wanted two axes, ({dims[0]}, {dims[1]})")
    if array.dtype.kind not in "iuf":
        raise DataError(f"{name} has dtype {array.dtype}; wanted real numbers")
    return array


def _names(dim: str, names: Any, size: int) -> Shaped[np.ndarray, " name"]:
    if names is None:
        return np.asarray([f"{dim}_{i}" for i in range(size)], dtype=str)
    # An array of text: netCDF cannot store names that come as a pandas Categorical or with mixed types.
    array = np.asarray(names, dtype=str)
    if array.shape != (size,):
        raise DataError(f"{dim}_names has shape {array.shape}; wanted {size} names, one per {dim}")
    return array


def _check_length(name: str, what: str, found: int, cells: int) -> None:
    if found != cells:
        raise DataError(f"{name} has {found} {what}; wanted {cells}, one per cell of expression")


def _numeric(dtype: Any) -> bool:
    return getattr(dtype, "kind", "O") in "iuf"


def _rows(name: str, index: Any, cells: Shaped[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
    """Positions of the cells in the index of another table, by name."""
    found = np.asarray(index, dtype=str)
    check_unique(f"{name}: cell", found)
    position = {cell: i for i, cell in enumerate(found)}
    missing = [cell for cell in cells if cell not in position]
    extra = sorted(set(position) - set(cells))
    if missing or extra:
        raise DataError(
            f"{name} and expression hold different cells: without {name} {listed(missing)}, "
            f"without expression {listed(extra)}; wanted the same cells, in any order"
        )
    return np.asarray([position[cell] for cell in cells], dtype=np.int64)


def _columns(
    genes: Sequence[str], gene_names: Shaped[np.ndarray, " gene"], where: str = "var_names"
) -> Int[np.ndarray, " chosen"]:
    check_unique("gene", gene_names)
    wanted = [genes] if isinstance(genes, str) else list(genes)
    position = {gene: i for i, gene in enumerate(gene_names)}
    unknown = [gene for gene in wanted if gene not in position]
    if unknown:
        raise DataError(f"genes not in {where}: {listed(unknown)}; found {listed(gene_names)}")
    return np.asarray([position[gene] for gene in wanted], dtype=np.int64)


def _take_columns(matrix: Any, columns: Int[np.ndarray, " chosen"]) -> Float[np.ndarray, "cell chosen"]:
    return (matrix.tocsc() if hasattr(matrix, "tocsc") else matrix)[:, columns]
