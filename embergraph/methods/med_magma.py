"""MED-MAGMA, ready-made: the plan that fits it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal, cast, get_args

import torch
import xarray as xr

from ..guides.med_magma import MEDMAGMAGuide
from ..guides.parts.published import published_em
from ..inference import em, register
from ..inference.copies import make_pair
from ..inference.inputs import Template, as_dataset, to_inputs
from ..inference.messengers import isolated
from ..matrices import published_quotient
from ..matrix_checks import check_matrix
from ..models.med_magma import MEDMAGMA
from ..models.parts.errors import DataError, NotSparseError, SchemaError
from ..models.parts.graph_priors import SpectralGraph
from ..validation import check_unique
from ._med_magma_fit import MEDMAGMAFit, refined

EStep = Literal["auto", "laplace", "variational", "mean_field", "published"]


def fit_med_magma(
    model: MEDMAGMA,
    data: xr.Dataset,
    *,
    e_step: EStep = "auto",
    num_steps: int = 100,
    tolerance: float = 4e-6,
    accelerate: str | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> MEDMAGMAFit:
    """Fit MED-MAGMA by EM: scales given graphs, graphs given moments, until neither moves.

    With sparse graphs (the default) the moments are those of row and column scaling; five matrices or more refit the
    scales every third sweep, with the edges that are as good as certain. In the end the posterior of the scales is
    computed given the graphs. The history holds minus the log evidence of the graphs given their moments; refits of
    the scales change the moments, so it need not fall. Under flat scales nothing of the graphs depends on how rows and
    columns were stretched.

    Parameters
    ----------
    model
        From `MEDMAGMA.for_data`; copied, not changed.
    data
        Dataset with ``expression``, raw: no logarithm, no depth normalisation, no centring.
    e_step
        See `MEDMAGMAGuide`; ``"published"`` runs the published algorithm with its own E-step, M-step and stopping rule
        in place of everything here, so that one can see what it computes: only for one matrix, and for its ridge the
        `model` has SpectralGraph(shrink=0, ridge=...) on both axes.
    num_steps, tolerance, accelerate, seed, device, progress, checkpoint
        As for `em`; acceleration is for `SpectralGraph`.

    Returns
    -------
    MEDMAGMAFit
        After Ctrl-C: the graphs as far as they got, with ``fit.settings["interrupted"]``.

    Raises
    ------
    DataError
        If rows and columns of the data cannot be scaled: NaN, infinities, empty or disconnected rows and columns, a
        matrix of rank one.
    SchemaError
        If data and model do not belong together.
    NotSparseError
        If sparse graphs were asked for and the data have none. With the model's default graphs the fit falls back on
        SpectralGraph, with a warning.
    NumericalError
        If an estimate does not exist; names the step.
    """
    dataset = as_dataset(data, model.schema)
    inputs = to_inputs(model.schema, dataset, device=device)
    if e_step not in get_args(EStep):
        raise DataError(f"e_step: found {e_step!r}; wanted one of {get_args(EStep)}")
    _check_sizes(model, dataset["expression"])
    check_matrix("expression", dataset["expression"])
    if e_step == "published":
        return _as_published(model, dataset, num_steps, tolerance, seed)

    def guide(model: MEDMAGMA) -> MEDMAGMAGuide:
        return MEDMAGMAGuide(model, e_step)

    def run(model: MEDMAGMA, checkpoint: str | Path | None) -> MEDMAGMAFit:
        fitted = em(
            model, guide, dataset.assign(expression=dataset["expression"].astype("float64")), num_steps=num_steps,
            tolerance=tolerance, accelerate=accelerate, seed=seed, device=device, progress=progress,
            checkpoint=checkpoint, fit_class=MEDMAGMAFit,
        )  # fmt: skip
        return cast("MEDMAGMAFit", fitted)

    try:
        fit = run(model, checkpoint)
    except NotSparseError as error:
        if not model.default_graphs or model.structure != "sum":
            raise
        warnings.warn(f"{error}. Fitted with SpectralGraph() instead.", stacklevel=2)
        if checkpoint is not None:
            Path(checkpoint).unlink(missing_ok=True)
        beside = None if checkpoint is None else f"{checkpoint}.spectral"
        fit = run(model.with_graphs(SpectralGraph(), SpectralGraph()), beside)
        fit.settings["not_sparse"] = str(error)
    if "replicate" in dataset["expression"].coords:
        fit.settings["replicates"] = [str(label) for label in dataset["replicate"].values]
    return refined(fit, inputs)


def _check_sizes(model: MEDMAGMA, expression: xr.DataArray) -> None:
    wanted = {"replicate": model.num_replicates, "cell": model.num_cells, "gene": model.num_genes}
    for dim in set(expression.dims) & set(expression.coords):
        check_unique(str(dim), expression[dim].values)
    for dim, size in expression.sizes.items():
        if wanted[str(dim)] != size:
            raise SchemaError(f"expression: found {size} along {dim!r}; wanted {wanted[str(dim)]}, as the model has")


def _as_published(model: MEDMAGMA, data: xr.Dataset, max_iter: int, stop_tol: float, seed: int) -> MEDMAGMAFit:
    """The published estimator as a fit: its graphs, and scales at their posterior given these."""
    graphs = model.cell_graph, model.gene_graph
    if data["expression"].ndim != 2:
        raise DataError(f"expression: found {data.sizes['replicate']} matrices; wanted one for e_step='published'")
    if not all(isinstance(graph, SpectralGraph) and graph.shrink == 0 for graph in graphs):
        found = " and ".join(type(graph).__name__ for graph in graphs)
        raise DataError(f"model: found {found}; wanted SpectralGraph(shrink=0) on both axes for e_step='published'")
    values = data["expression"].values.astype("float64")
    ridge = float(cast("SpectralGraph", graphs[0]).ridge)
    result = published_em(
        torch.as_tensor(published_quotient(values)),
        max_iter=max_iter,
        stop_tol=stop_tol,
        regularization=ridge,
        seed=seed,
    )
    with isolated(seed, dtype=torch.double) as store, torch.no_grad():
        made, guide, _ = make_pair(model, MEDMAGMAGuide, {"expression": torch.as_tensor(values)})
        copied, guide = cast("MEDMAGMA", made), cast("MEDMAGMAGuide", guide)
        guide.take_graphs(result.row_precision, result.col_precision)
        guide.refine_scales(copied, {"expression": torch.as_tensor(values)})
    settings = {
        "routine": "published em", "seed": seed, "steps_done": len(result.changes), "converged": result.converged,
        "final_loss": result.changes[-1], "loss": "change of the graphs in a step",
    }  # fmt: skip
    template = Template.of(model.schema, data)
    return MEDMAGMAFit(copied, guide, model.schema, template, history=[result.changes], settings=settings, store=store)


register(MEDMAGMA)
register(MEDMAGMAGuide)
