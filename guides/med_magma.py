"""The guide of MED-MAGMA: Gaussian log scales with exact moments, graphs as point masses.

    (a, b) ~ Normal(m, Sigma),   Z = diag(e^a) D diag(e^b) = sqrt(omega) X,
    log u = -(a - mean a),   log v = -(b - mean b),   log omega = 2 (mean a + mean b)

It keeps every dependence among the scales of one matrix (or none, for large axes) and gives up the dependence between
scales and graphs: the graphs are held at their estimate while scales are drawn. What is known of single edges is kept
beside, as one spike and slab a pair (`edges`). `update` is one sweep of closed-form updates of all these numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..models.med_magma import MEDMAGMA
from ..models.parts.errors import DataError
from ..models.parts.graph_priors import FixedGraph, pairs_of
from .parts.dependence import variance_inflation
from .parts.edge_buffers import EdgeBuffers
from .parts.graph_updates import GRAPH_UPDATES, GraphUpdate, family_of, set_normalised
from .parts.joint_scales import JointScales
from .parts.log_scale_family import LogScales
from .parts.scale_updates import EStep, ScaleProblem, spread_points, update_spreads

if TYPE_CHECKING:
    from jaxtyping import Float

FULL_UP_TO = 1500
SMOOTH = ("spectral",)


class MEDMAGMAGuide(torch.nn.Module):
    """Posterior of the scales, points of the graphs and of hyperparameters.

    Parameters
    ----------
    model
        The model that it is for.
    e_step
        ``"laplace"``: Gaussian at the mode with the exact curvature and a mean corrected to third order;
        ``"variational"``: the Gaussian of the best evidence bound; ``"mean_field"``: independent scales, without any
        inverse; ``"auto"``: Laplace up to 1500 rows and columns together, mean field beyond.

    Raises
    ------
    DataError
        If the model's structure or combination of graph priors has no closed-form updates.
    """

    cell_precision: Tensor
    gene_precision: Tensor
    S_cell: Tensor
    S_gene: Tensor
    shrink: Tensor
    relative_change: Tensor

    def __init__(self, model: MEDMAGMA, e_step: EStep | Literal["auto"] = "auto") -> None:
        if model.omega_structure == "product":
            raise DataError("structure: found 'product'; wanted a Kronecker sum (use svi or mcmc for the product)")
        if e_step not in ("auto", *get_args(EStep)):
            raise DataError(f"e_step: found {e_step!r}; wanted 'auto' or one of {get_args(EStep)}")
        n, p = model.num_cells, model.num_genes
        chosen = ("laplace" if n + p <= FULL_UP_TO else "mean_field") if e_step == "auto" else e_step
        num_sets = None if model.shared_scales else model.num_replicates
        family = family_of(model.cell_graph, model.gene_graph)
        points = {**GRAPH_UPDATES[family].points(model), **spread_points(model)}
        sites = {axis: _site_of(getattr(model, f"{axis}_graph")) for axis in ("cell", "gene")}
        self._build(n, p, num_sets, chosen, family, points, sites)

    def _build(
        self,
        n: int,
        p: int,
        num_sets: int | None,
        e_step: EStep,
        family: str,
        points: Mapping[str, list[int]],
        sites: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.num_cells, self.num_genes, self.e_step = n, p, e_step
        self.family, self.sites = family, dict(sites)
        self.scales = JointScales(n, p, num_sets, "mean_field" if e_step == "mean_field" else "full")
        self.register_buffer("cell_precision", torch.eye(n))
        self.register_buffer("gene_precision", torch.eye(p))
        self.register_buffer("S_cell", torch.zeros(n, n))
        self.register_buffer("S_gene", torch.zeros(p, p))
        self.register_buffer("relative_change", torch.tensor(1.0))
        self.register_buffer("shrink", torch.zeros(2))
        self.point = torch.nn.Module()
        for name, shape in points.items():
            self.point.register_buffer(name, torch.ones(shape))
        self.edges = EdgeBuffers(n, p) if family == "edges" else None

    def forward(self, expression: Tensor | None = None) -> None:
        """Draw the scales; graphs and hyperparameters are points."""
        points = dict(self.point.named_buffers())
        for name, value in points.items():
            if not name.startswith("stretch"):
                pyro.sample(name, dist.Delta(value).to_event(value.dim()))
        for axis, site in self.sites.items():
            precision = getattr(self, f"{axis}_precision")
            if site == "edges":
                pyro.sample(f"{axis}_edges", dist.Delta(pairs_of(precision)).to_event(1))
            elif site == "precision":
                pyro.sample(f"{axis}_precision", dist.Delta(precision).to_event(2))
        with self.replicates():
            for name, value in points.items():
                if name.startswith("stretch"):
                    pyro.sample(name, dist.Delta(value).to_event(1))
            self.scales()

    def replicates(self) -> AbstractContextManager[Any]:
        """The plate of matrices with scales of their own; nothing when there is one set of scales."""
        sets = self.scales.num_sets
        return nullcontext() if sets is None else pyro.plate("replicate", sets, dim=-1)

    def given_graphs(self) -> MEDMAGMAGuide:
        """The same guide without the sites of graphs, for `MEDMAGMA.given`; shares its numbers."""
        guide = copy.copy(self)
        guide.sites = {"cell": "", "gene": ""}
        guide._modules = dict(self._modules)
        guide.point = torch.nn.Module()
        for name, value in self.point.named_buffers():
            if name.startswith(("tau", "stretch")):
                guide.point.register_buffer(name, value)
        return guide

    def update(self, model: MEDMAGMA, inputs: Mapping[str, Tensor], step: int) -> float:
        """One sweep: scales where they are due, graphs, spreads of the scales; returns the bound."""
        problem = ScaleProblem(model, inputs["expression"], self.point)
        updates = GRAPH_UPDATES[self.family]
        fitted = None
        if step == 0:
            fitted = self.first_scales(problem, updates, model)
        elif updates.scales_due(self, model, step):
            fitted = self.fit_scales(problem, *updates.graphs_for_scales(self))
        self.fit_graphs(updates, model)
        update_spreads(model, self.point, self.scales)
        return updates.bound(self, model, problem, fitted) + updates.log_prior(self, model)

    def first_scales(self, problem: ScaleProblem, updates: type[GraphUpdate], model: MEDMAGMA) -> list[LogScales]:
        """First E-step. Where there is no graph yet its mode is row and column scaling, which gives the moments."""
        self.hold_known_graphs(model)
        graphs = updates.graphs_for_scales(self)
        modes = problem.modes(*graphs)
        fitted = problem.gaussians(modes, *graphs, self.e_step)
        self.scales.store(fitted)
        updates.prepare(self, model, problem.scaled(modes))
        self._set_moments(*problem.moments_at(modes))
        return fitted

    def fit_scales(
        self, problem: ScaleProblem, Psi_1: Float[Tensor, "cell cell_other"], Psi_2: Float[Tensor, "gene gene_other"]
    ) -> list[LogScales]:
        """E-step: the posterior of the scales given the graphs, and the moments that the graphs need."""
        fitted = problem.gaussians(problem.modes(Psi_1, Psi_2, self.scales), Psi_1, Psi_2, self.e_step)
        self.scales.store(fitted)
        self._set_moments(*problem.moments(fitted))
        return fitted

    def _set_moments(self, S_cell: Tensor, S_gene: Tensor) -> None:
        self.S_cell.copy_(S_cell)
        self.S_gene.copy_(S_gene)

    def fit_graphs(self, updates: type[GraphUpdate], model: MEDMAGMA) -> None:
        """M-step: the graphs given the moments."""
        before = self.cell_precision.clone(), self.gene_precision.clone()
        updates.step(self, model)
        self.hold_known_graphs(model)
        self.relative_change.fill_(max(map(_relative_change, (self.cell_precision, self.gene_precision), before)))

    def graphs_for_scales(self) -> tuple[Float[Tensor, "cell cell_other"], Float[Tensor, "gene gene_other"]]:
        """The precision factors that the posterior of the scales is given: only edges that are as good as certain."""
        return GRAPH_UPDATES[self.family].graphs_for_scales(self)

    def hold_known_graphs(self, model: MEDMAGMA) -> None:
        """Put the graphs that the model knows in their place."""
        for axis in ("cell", "gene"):
            graph = getattr(model, f"{axis}_graph")
            if isinstance(graph, FixedGraph):
                getattr(self, f"{axis}_precision").copy_(graph.precision)
                if self.edges is not None:
                    self.edges.hold(axis, graph.precision)

    def refine_scales(self, model: MEDMAGMA, inputs: Mapping[str, Tensor]) -> None:
        """Fit the scales once more, given the final graphs, and widen them for the dependence that these leave out.

        Moments, on which the graphs rest, stay as they are.
        """
        problem = ScaleProblem(model, inputs["expression"], self.point)
        graphs = self.graphs_for_scales()
        self.scales.store(problem.gaussians(problem.modes(*graphs, self.scales), *graphs, self.e_step))
        if self.family != "fixed" and bool(self.S_cell.any()):
            inflation = variance_inflation(self.S_cell, self.S_gene, *graphs, model.num_replicates or 1)
            self.scales.widen(*inflation)
        if model.overall_prior is not None:
            prior, sets = model.overall_prior, range(len(problem.sets))
            self.scales.shift_overall([problem.overall_shift(k, prior, self.scales) for k in sets])

    def take_graphs(self, Psi_1: Float[Tensor, "cell cell_other"], Psi_2: Float[Tensor, "gene gene_other"]) -> None:
        """Hold graphs that were estimated elsewhere, at the guide's own overall scale."""
        set_normalised(self, Psi_1, Psi_2)

    def free_parameters(self) -> Float[Tensor, " entry"]:
        """Entries of both factors, from which a sweep of a smooth family follows; for acceleration.

        Raises
        ------
        DataError
            If the graphs have thresholds, which no extrapolation respects.
        """
        if self.family not in SMOOTH:
            raise DataError("accelerate: found graphs with thresholds; wanted SpectralGraph on both axes, or None")
        return torch.cat([matrix[_upper(matrix)] for matrix in (self.cell_precision, self.gene_precision)])

    def set_free_parameters(self, vector: Float[Tensor, " entry"]) -> None:
        """Inverse of `free_parameters`."""
        cut = self.num_cells * (self.num_cells + 1) // 2
        for matrix, entries in zip(
            (self.cell_precision, self.gene_precision), (vector[:cut], vector[cut:]), strict=True
        ):
            rows, cols = _upper(matrix)
            matrix[rows, cols] = entries
            matrix[cols, rows] = entries

    def change(self) -> float:
        """Largest relative change of an off-diagonal in the last sweep."""
        return float(self.relative_change)

    def settings(self) -> dict[str, Any]:
        """JSON description; the numbers are in the saved state."""
        return {
            "num_cells": self.num_cells,
            "num_genes": self.num_genes,
            "num_sets": self.scales.num_sets,
            "e_step": self.e_step,
            "family": self.family,
            "points": {name: list(value.shape) for name, value in self.point.named_buffers()},
            "sites": self.sites,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> MEDMAGMAGuide:
        """A guide of the described shapes, whose numbers the saved state then fills."""
        guide = cls.__new__(cls)
        guide._build(
            settings["num_cells"], settings["num_genes"], settings["num_sets"], settings["e_step"],
            settings["family"], settings["points"], settings["sites"],
        )  # fmt: skip
        return guide


def _upper(matrix: Tensor) -> tuple[Tensor, Tensor]:
    rows, cols = torch.triu_indices(*matrix.shape, device=matrix.device)
    return rows, cols


def _site_of(graph: Any) -> str:
    return next((name for name in ("edges", "precision") if f"cell_{name}" in graph.site_dims("cell")), "")


def _relative_change(now: Tensor, before: Tensor) -> float:
    size = (now - torch.diag_embed(now.diagonal())).abs().max()
    return float((now - before).abs().max() / torch.maximum(size, torch.as_tensor(1e-3).to(size)))
