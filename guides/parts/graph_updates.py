"""M-steps: closed-form updates of the two graphs, one family of graph priors each.

A family is chosen by the priors of the model's two axes. Each works on the guide's moments ``S_cell`` and ``S_gene``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...models.med_magma import MEDMAGMA
from ...models.parts.errors import DataError, NotSparseError
from ...models.parts.graph_priors import FixedGraph, GaussianGraph, GraphPrior, LaplaceGraph, SparseGraph, SpectralGraph
from ...models.parts.scale_priors import FlatScales
from .edge_bound import log_prior
from .edge_learning import node_propensity
from .edge_sampler import sample_edges
from .edge_state import AxisEdges, EdgePrior, EdgeState, confident_precision
from .log_scale_family import LogScales
from .scale_updates import ScaleProblem, log_det, log_normalisers, log_prior_of_spreads
from .sparse_edges import one_round, start
from .sparse_l1 import l1_weights, sparse_precision
from .spectral import automatic_shrink, spectral_precision

if TYPE_CHECKING:
    from ..med_magma import MEDMAGMAGuide

AXES = ("cell", "gene")
MANY_MATRICES = 5
REFIT_EVERY = 3
LIKELY = 0.7
# From these rounds on; at most .3 and .4 on simulated sparse graphs, above .7 on counts.
MOST_LEFT_OUT = {12: 0.4, 6: 0.8}


class GraphUpdate:
    """What a family does; the base class leaves the graphs as they are."""

    @staticmethod
    def points(model: MEDMAGMA) -> dict[str, list[int]]:
        """Hyperparameters that the family estimates, with their shapes."""
        return {}

    @staticmethod
    def prepare(guide: MEDMAGMAGuide, model: MEDMAGMA, scaled: list[Tensor]) -> None:
        """Look at the scaled matrices once, before the first update."""

    @staticmethod
    def scales_due(guide: MEDMAGMAGuide, model: MEDMAGMA, step: int) -> bool:
        """Whether the scales are to be fitted again before the graphs."""
        return True

    @staticmethod
    def graphs_for_scales(guide: MEDMAGMAGuide) -> tuple[Tensor, Tensor]:
        """The precision factors that scales are fitted with."""
        return guide.cell_precision, guide.gene_precision

    @staticmethod
    def step(guide: MEDMAGMAGuide, model: MEDMAGMA) -> None:
        """One update of both graphs."""

    @staticmethod
    def bound(guide: MEDMAGMAGuide, model: MEDMAGMA, problem: ScaleProblem, fitted: list[LogScales] | None) -> float:
        """Evidence lower bound given the graphs, at the overall scale that suits them; moves the scales there."""
        graphs = guide.cell_precision, guide.gene_precision
        fitted = problem.rescaled(fitted or guide.scales.as_log_scales(), *graphs)
        guide.scales.move_to(fitted)
        bounds = problem.bounds(fitted, *graphs)
        return (
            sum(bounds) + len(bounds) * log_normalisers(model, guide.point) + log_prior_of_spreads(model, guide.point)
        )

    @staticmethod
    def log_prior(guide: MEDMAGMAGuide, model: MEDMAGMA) -> float:
        """Log density of the graphs under their priors, up to a constant."""
        return 0.0


class EdgePosteriors(GraphUpdate):
    """Sparse or Gaussian priors of single pairs: one damped Newton step on all weights of both axes.

    Weak entries spoil the fit of the scales. So scales see edges that are as good as certain, and with few matrices,
    where hardly any are, they stay at the row and column scaling until the end.
    """

    @staticmethod
    def points(model: MEDMAGMA) -> dict[str, list[int]]:
        """Prior log-odds and slab precision, or the scale of Gaussian weights."""
        found: dict[str, list[int]] = {}
        for axis in AXES:
            graph = getattr(model, f"{axis}_graph")
            if isinstance(graph, SparseGraph):
                found |= {f"{axis}_log_odds": [], f"{axis}_slab_precision": []}
                if graph.hubs is not None:
                    found[f"{axis}_propensity"] = [getattr(model, f"num_{axis}s")]
            elif isinstance(graph, GaussianGraph):
                found[f"{axis}_edge_scale"] = []
        return found

    @staticmethod
    def prepare(guide: MEDMAGMAGuide, model: MEDMAGMA, scaled: list[Tensor]) -> None:
        """Start from the empty graph under the model's priors."""
        assert guide.edges is not None
        priors = [_edge_prior(getattr(model, f"{axis}_graph")) for axis in AXES]
        sizes = guide.num_cells, guide.num_genes
        guide.edges.store(start(*sizes, *priors, device=guide.S_cell.device))
        guide.hold_known_graphs(model)

    @staticmethod
    def scales_due(guide: MEDMAGMAGuide, model: MEDMAGMA, step: int) -> bool:
        """Always while spreads are learned; else every third sweep with many matrices, and never again with few."""
        if not _flat(model):
            return True
        return (model.num_replicates or 1) >= MANY_MATRICES and step % REFIT_EVERY == 0

    @staticmethod
    def graphs_for_scales(guide: MEDMAGMAGuide) -> tuple[Tensor, Tensor]:
        """Unit diagonals with the edges that are as good as certain; known graphs as they are."""
        assert guide.edges is not None
        state = guide.edges.state()
        return _for_scales(guide, "cell", state.row), _for_scales(guide, "gene", state.col)

    @staticmethod
    def step(guide: MEDMAGMAGuide, model: MEDMAGMA) -> None:
        """One round, and the hyperparameters that it ended with."""
        assert guide.edges is not None
        priors = [_edge_prior(getattr(model, f"{axis}_graph")) for axis in AXES]
        state = guide.edges.state()
        state = one_round(state, guide.S_cell, guide.S_gene, model.num_replicates or 1, *priors)
        guide.edges.store(state)
        for axis, edges in zip(AXES, (state.row, state.col), strict=True):
            if isinstance(getattr(model, f"{axis}_graph"), SparseGraph):
                _check_held(axis, edges, state.rounds)
        for axis, edges in zip(AXES, (state.row, state.col), strict=True):
            getattr(guide, f"{axis}_precision").copy_(edges.precision)
            _store_points(guide.point, axis, edges, getattr(model, f"{axis}_graph"))

    @staticmethod
    def bound(guide: MEDMAGMAGuide, model: MEDMAGMA, problem: ScaleProblem, fitted: list[LogScales] | None) -> float:
        """Log likelihood of the graphs given the moments, at the best overall scale; cheap while scales stay."""
        if not _flat(model):
            return GraphUpdate.bound(guide, model, problem, fitted)
        Psi_1, Psi_2 = guide.cell_precision, guide.gene_precision
        m, size = model.num_replicates or 1, Psi_1.shape[0] * Psi_2.shape[0]
        q = float((Psi_1 * guide.S_cell).sum() + (Psi_2 * guide.S_gene).sum())
        return 0.5 * m * (log_det(Psi_1, Psi_2) - size * math.log(q / size))

    @staticmethod
    def log_prior(guide: MEDMAGMAGuide, model: MEDMAGMA) -> float:
        """Spike and slab at the point estimate: pairs are edges or not."""
        assert guide.edges is not None
        state, total = guide.edges.state(), 0.0
        for axis, edges in zip(AXES, (state.row, state.col), strict=True):
            graph = getattr(model, f"{axis}_graph")
            if isinstance(graph, SparseGraph):
                total += float(log_prior(edges, _edge_prior(graph), marginal=True))
        return total


class KnownGraphs(GraphUpdate):
    """Both graphs are fixed."""

    @staticmethod
    def graphs_for_scales(guide: MEDMAGMAGuide) -> tuple[Tensor, Tensor]:
        """The known graphs."""
        return guide.cell_precision, guide.gene_precision


class SpectralEstimates(GraphUpdate):
    """Eigenvalues alone, with shrinkage (GmGM on the moments)."""

    @staticmethod
    def prepare(guide: MEDMAGMAGuide, model: MEDMAGMA, scaled: list[Tensor]) -> None:
        """Settle how much to shrink."""
        stack = torch.cat([Z.reshape(-1, *Z.shape[-2:]) for Z in scaled])
        chosen = [getattr(model, f"{axis}_graph").shrink for axis in AXES]
        automatic = automatic_shrink(stack) if "auto" in chosen else (0.0, 0.0)
        values = [auto if rho == "auto" else rho for rho, auto in zip(chosen, automatic, strict=True)]
        guide.shrink.copy_(guide.shrink.new_tensor(values))

    @staticmethod
    def step(guide: MEDMAGMAGuide, model: MEDMAGMA) -> None:
        """One eigendecomposition an axis, then Newton steps on the eigenvalues; mean diagonals sum to two."""
        rho_cell, rho_gene = guide.shrink.tolist()
        ridge = max(float(getattr(model, f"{axis}_graph").ridge) for axis in AXES)
        found = spectral_precision(
            guide.S_cell, guide.S_gene, num_matrices=model.num_replicates or 1, shrink=(rho_cell, rho_gene), ridge=ridge
        )
        set_normalised(guide, found.row_precision, found.col_precision)


class LaplaceModes(GraphUpdate):
    """L1-penalised weights with exact zeros, diagonals free; scales as for sparse graphs."""

    @staticmethod
    def scales_due(guide: MEDMAGMAGuide, model: MEDMAGMA, step: int) -> bool:
        """Every third sweep with many matrices; never again with few."""
        return EdgePosteriors.scales_due(guide, model, step)

    @staticmethod
    def step(guide: MEDMAGMAGuide, model: MEDMAGMA) -> None:
        """Proximal gradient to the mode."""
        m = model.num_replicates or 1
        units = l1_weights(guide.S_cell, guide.S_gene, 1.0, m)
        scales = [float(getattr(model, f"{axis}_graph").scale) for axis in AXES]
        cell, gene = (1 / (m * scale * unit) for scale, unit in zip(scales, units, strict=True))
        found = sparse_precision(guide.S_cell, guide.S_gene, penalty=(cell, gene), num_matrices=m)
        set_normalised(guide, *found)


def set_normalised(guide: MEDMAGMAGuide, Psi_1: Tensor, Psi_2: Tensor) -> None:
    """Store factors with mean diagonals of one: the overall scale belongs to omega, and would drift."""
    total = Psi_1.diagonal().mean() + Psi_2.diagonal().mean()
    for axis, matrix in zip(AXES, (Psi_1, Psi_2), strict=True):
        scaled = matrix * (2 / total)
        scaled.diagonal().add_(1 - scaled.diagonal().mean())
        getattr(guide, f"{axis}_precision").copy_(scaled)


GRAPH_UPDATES: dict[str, type[GraphUpdate]] = {
    "fixed": KnownGraphs,
    "edges": EdgePosteriors,
    "spectral": SpectralEstimates,
    "laplace": LaplaceModes,
}
"""The families by name."""

FAMILIES: dict[type[GraphPrior], str] = {
    SparseGraph: "edges",
    GaussianGraph: "edges",
    SpectralGraph: "spectral",
    LaplaceGraph: "laplace",
}


def family_of(cell_graph: GraphPrior, gene_graph: GraphPrior) -> str:
    """Which family serves two priors.

    Raises
    ------
    DataError
        If none does.
    """
    kinds = [type(graph) for graph in (cell_graph, gene_graph) if not isinstance(graph, FixedGraph)]
    names = {FAMILIES.get(kind, kind.__name__) for kind in kinds}
    if not names:
        return "fixed"
    if len(names) > 1 or (names <= set(GRAPH_UPDATES) and names != {"edges"} and len(kinds) == 1):
        found = f"{type(cell_graph).__name__} and {type(gene_graph).__name__}"
        raise DataError(
            f"cell_graph, gene_graph: found {found}; wanted two SpectralGraph, two LaplaceGraph, or SparseGraph, "
            "GaussianGraph and FixedGraph in any combination"
        )
    (name,) = names
    if name not in GRAPH_UPDATES:
        raise DataError(f"graph prior: found {name}; wanted one with closed-form updates (use svi or mcmc for others)")
    return name


def _for_scales(guide: MEDMAGMAGuide, axis: str, edges: AxisEdges) -> Tensor:
    if not guide.sites[axis]:
        return getattr(guide, f"{axis}_precision")
    if hasattr(guide.point, f"{axis}_edge_scale"):  # no edge is certain where every pair is one
        return torch.eye(len(edges.precision)).to(edges.precision)
    return confident_precision(edges)


def sample_into(guide: MEDMAGMAGuide, model: MEDMAGMA, *, num_sweeps: int, num_burn_in: int, seed: int) -> None:
    """Replace the guide's estimates of single edges by samples of their posterior."""
    assert guide.edges is not None
    priors = [_edge_prior(getattr(model, f"{axis}_graph")) for axis in AXES]
    m, state = model.num_replicates or 1, guide.edges.state()
    found = sample_edges(
        guide.S_cell, guide.S_gene, m, *priors, num_sweeps=num_sweeps, num_burn_in=num_burn_in, seed=seed
    )
    row, col = (
        replace(
            edges, probability=drawn.probability, mean=drawn.mean, variance=drawn.variance,
            posterior_log_odds=drawn.probability.clamp(1e-12, 1 - 1e-12).logit(),
        )
        for edges, drawn in zip((state.row, state.col), found, strict=True)
    )  # fmt: skip
    guide.edges.store(EdgeState(row, col, rounds=state.rounds, change=0.0, converged=True))
    guide.hold_known_graphs(model)


def _check_held(axis: str, edges: AxisEdges, rounds: int) -> None:
    """Refuse to go on when likely edges are so many and strong that no precision matrix can hold them.

    Edges enter the precision over a few rounds; a handful of late ones says nothing.
    """
    likely = edges.probability > LIKELY
    wanted = (edges.probability * edges.mean).abs()[likely].sum()
    left_out = 1 - edges.precision.abs()[likely].sum() / wanted
    limit = next((share for first, share in MOST_LEFT_OUT.items() if rounds >= first), 1.0)
    if bool(likely.sum() >= len(likely)) and bool(left_out > limit):
        pairs = edges.probability.numel() - len(edges.probability)
        share = float(edges.probability.sum()) / pairs
        raise NotSparseError(
            f"{axis} graph: found {share:.0%} of the pairs linked, more strongly than any precision matrix allows; "
            "wanted data with a sparse graph. Counts have a common profile and cells come in types: take the profile "
            "out (matrices.remove_profile), or use SpectralGraph() on both axes, which ranks pairs but names no edges"
        )


def _flat(model: MEDMAGMA) -> bool:
    return isinstance(model.cell_scales, FlatScales) and isinstance(model.gene_scales, FlatScales)


def _edge_prior(graph: GraphPrior) -> EdgePrior:
    if isinstance(graph, SparseGraph):
        return EdgePrior(
            expected_degree=graph.expected_degree, slab_scale=graph.slab_scale, log_odds=graph.log_odds,
            propensity=graph.propensity, hubs=graph.hubs, closure_sd=graph.closure,
        )  # fmt: skip
    if isinstance(graph, GaussianGraph):
        return EdgePrior(kind="gaussian", slab_scale=graph.scale, expected_degree=1.0)
    return EdgePrior(expected_degree=1.0)  # of a known graph, whose estimate is thrown away


def _store_points(point: torch.nn.Module, axis: str, edges: AxisEdges, graph: GraphPrior) -> None:
    values = {
        f"{axis}_log_odds": edges.log_odds,
        f"{axis}_slab_precision": 1 / edges.slab_variance,
        f"{axis}_edge_scale": edges.slab_variance.sqrt(),
    }
    if isinstance(graph, SparseGraph) and graph.hubs is not None:
        values[f"{axis}_propensity"] = node_propensity(edges.probability, graph.hubs)
    held: dict[str, Any] = dict(point.named_buffers())
    for name, value in values.items():
        if name in held:
            held[name].copy_(value)
