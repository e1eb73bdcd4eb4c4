"""What a fitted MED-MAGMA says of its graphs and scales, with names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from scipy.special import ndtr, ndtri

from ..guides.parts.edge_curvature import curvature, quadrature
from ..guides.parts.edge_score import ScoreKind, edge_scores, empty_graph_z
from ..guides.parts.edge_state import AxisEdges
from ..guides.parts.scale_updates import ScaleProblem, log_normalisers
from ..inference.inputs import to_inputs
from ..inference.messengers import isolated
from ..inference.options import check_counts
from ..inference.query import checked
from ..matrix_checks import check_matrix
from ..models.parts.errors import DataError
from ..models.parts.graph_priors import FixedGraph

if TYPE_CHECKING:
    from jaxtyping import Float

AXES = {"cell": "row", "gene": "col"}


@dataclass(frozen=True)
class EdgeLaw:
    """Spike and slab of every weight of one axis: zero with probability 1 - pi, else Normal(mean, sd^2).

    Attributes
    ----------
    probability, mean, sd
        pi and the moments given that the edge is real, of entries of Psi.
    scale
        Factor from an entry of Psi to a partial correlation, negative.
    """

    probability: Float[np.ndarray, "node node_other"]
    mean: Float[np.ndarray, "node node_other"]
    sd: Float[np.ndarray, "node node_other"]
    scale: Float[np.ndarray, "node node_other"]

    def exceeds(self, threshold: float) -> Float[np.ndarray, "node node_other"]:
        """Probability that the partial correlation is above `threshold` in size."""
        limit = threshold / np.abs(self.scale)
        return self.probability * (ndtr((self.mean - limit) / self.sd) + ndtr((-self.mean - limit) / self.sd))

    def expected(self) -> Float[np.ndarray, "node node_other"]:
        """Posterior mean of the partial correlation."""
        return self.scale * self.probability * self.mean

    def quantile(self, level: float) -> Float[np.ndarray, "node node_other"]:
        """Quantile of the partial correlation; exactly zero where the atom at zero covers the level."""
        pi = np.clip(self.probability, 1e-300, 1.0)
        mean = self.scale * self.mean
        sd = np.abs(self.scale) * self.sd
        below = pi * ndtr(-mean / sd)  # mass of the slab on the negative side
        left = mean + sd * ndtri(np.clip(level / pi, 0.0, 1.0))
        right = mean + sd * ndtri(np.clip((level - (1 - pi)) / pi, 0.0, 1.0))
        atom = (level >= below) & (level <= below + 1 - pi)
        return np.clip(np.where(atom, 0.0, np.where(level < below, left, right)), -1.0, 1.0)

    def draw(self, which: tuple[np.ndarray, np.ndarray], num_draws: int, seed: int) -> Float[np.ndarray, "draw pair"]:
        """Draw partial correlations of some pairs, each by itself."""
        random = np.random.default_rng(seed)
        pi, mean, sd, scale = (values[which] for values in (self.probability, self.mean, self.sd, self.scale))
        shape = (num_draws, len(pi))
        return scale * (random.random(shape) < pi) * (mean + sd * random.standard_normal(shape))


def edge_law(fit: Any, axis: str) -> EdgeLaw:
    """The law of the weights of one axis.

    For priors on single pairs the spike and slab of the guide. For spectral estimates a Normal around the estimate
    from the curvature of the likelihood in that entry, the rest held fixed: a lower bound of the uncertainty.
    """
    guide, other = fit.guide, {"cell": "gene", "gene": "cell"}[axis]
    precision, other_precision = (getattr(guide, f"{name}_precision") for name in (axis, other))
    if guide.edges is not None:
        edges: AxisEdges = getattr(guide.edges.state(), AXES[axis])
        probability, mean, sd = edges.probability, edges.mean, edges.variance.clamp(min=1e-24).sqrt()
    else:
        values, vectors = torch.linalg.eigh(precision)
        m = fit.model.num_replicates or 1
        h = curvature(values, vectors, quadrature(torch.linalg.eigvalsh(other_precision)))
        probability, mean, sd = torch.ones_like(precision), precision, (m * h).rsqrt()
    diagonal = precision.diagonal() + other_precision.diagonal().mean()
    scale = -(diagonal[:, None] * diagonal).rsqrt()
    return EdgeLaw(*(values.cpu().numpy() for values in (probability, mean, sd, scale)))


def graphs(fit: Any, *, threshold: float, interval: float, score: ScoreKind) -> xr.Dataset:
    """Graphs of both axes; see `MEDMAGMAFit.graphs`."""
    _check_interval(interval)
    if not 0 <= threshold < 1:
        raise DataError(f"threshold: found {threshold}; wanted a partial correlation in [0, 1)")
    tail = (1 - interval) / 2
    variables: dict[str, Any] = {}
    ranked = _scores(fit, score)
    for axis in AXES:
        law, dims = edge_law(fit, axis), (axis, f"{axis}_other")
        found = {
            "precision": getattr(fit.guide, f"{axis}_precision").cpu().numpy(),
            "partial_correlation": law.expected(),
            "lower": law.quantile(tail),
            "upper": law.quantile(1 - tail),
            "edge_probability": law.exceeds(threshold),
            "score": ranked[axis],
        }
        for name, values in found.items():
            if name != "precision":
                np.fill_diagonal(values, 0.0)
            variables[f"{axis}_{name}"] = (dims, values)
    attrs = {"threshold": threshold, "interval": interval, "diagonal": "precision only; zero elsewhere"}
    return xr.Dataset(variables, labels(fit), attrs)


def _check_interval(interval: float) -> None:
    if not 0 < interval < 1:
        raise DataError(f"interval: found {interval}; wanted a probability between 0 and 1")


def _scores(fit: Any, kind: ScoreKind) -> dict[str, np.ndarray]:
    """What pairs are ranked by, see `edge_scores`.

    Without spike and slab ``"auto"`` is the scaled Gram matrix, and all pairs have the probability one of an edge.
    """
    guide, m = fit.guide, fit.model.num_replicates or 1
    if guide.edges is not None:
        found = edge_scores(guide.edges.state(), guide.S_cell, guide.S_gene, m, kind)
        scores = {axis: score.cpu().numpy().copy() for axis, score in zip(AXES, found, strict=True)}
        known = [axis for axis in AXES if isinstance(getattr(fit.model, f"{axis}_graph"), FixedGraph)]
        return scores | {axis: np.abs(edge_law(fit, axis).mean) for axis in known}
    if kind in ("auto", "scaling") and bool(guide.S_cell.any()):
        both = (("cell", guide.S_cell, fit.model.num_genes), ("gene", guide.S_gene, fit.model.num_cells))
        return {axis: empty_graph_z(S, m * size).cpu().numpy() for axis, S, size in both}
    if kind not in ("auto", "z"):
        raise DataError(f"score: found {kind!r}; wanted 'auto', 'scaling' or 'z' for graphs without spike and slab")
    laws = {axis: edge_law(fit, axis) for axis in AXES}
    scores = {axis: np.abs(law.mean) / law.sd for axis, law in laws.items()}
    for score in scores.values():
        np.fill_diagonal(score, 0.0)
    return scores


def labels(fit: Any) -> dict[str, Any]:
    """Names of cells and genes on both sides of a square matrix."""
    coords = fit.template.coords
    named = {axis: coords[axis] for axis in AXES if axis in coords}
    return {**named, **{f"{axis}_other": names for axis, names in named.items()}}


def scales(fit: Any, interval: float) -> xr.Dataset:
    """Log scales with intervals; see `MEDMAGMAFit.scales`."""
    _check_interval(interval)
    joint = fit.guide.scales
    log_u, log_v, log_omega = joint.as_sites(joint.loc)
    outer = () if joint.num_sets is None else ("replicate",)
    half = float(ndtri(0.5 + interval / 2))
    variables: dict[str, Any] = {"log_omega": (outer, log_omega.cpu().numpy())}
    for name, axis, mean, variance in zip(
        ("log_u", "log_v"), AXES, (log_u, log_v), joint.site_variances(), strict=True
    ):
        dims, centre, sd = (*outer, axis), mean.cpu().numpy(), variance.sqrt().cpu().numpy()
        bounds = {"": centre, "_sd": sd, "_lower": centre - half * sd, "_upper": centre + half * sd}
        variables |= {f"{name}{suffix}": (dims, values) for suffix, values in bounds.items()}
    coords = {axis: fit.template.coords[axis] for axis in AXES if axis in fit.template.coords}
    if outer and "replicates" in fit.settings:
        coords["replicate"] = fit.settings["replicates"]
    return xr.Dataset(variables, coords, {"interval": interval})


def strongest(found: xr.Dataset, axis: str, num_edges: int) -> xr.Dataset:
    """Pairs of one axis with the highest scores; see `MEDMAGMAFit.strongest`."""
    if axis not in AXES:
        raise DataError(f"axis: found {axis!r}; wanted 'cell' or 'gene'")
    check_counts(num_edges=num_edges)
    score = found[f"{axis}_score"].values
    rows, cols = np.triu_indices(len(score), 1)
    best = np.argsort(-score[rows, cols], kind="stable")[:num_edges]
    where = rows[best], cols[best]
    names = found[axis].values if axis in found.coords else np.arange(len(score))
    columns = {
        name: ((f"{axis}_edge",), found[f"{axis}_{name}"].values[where])
        for name in ("partial_correlation", "lower", "upper", "edge_probability", "score")
    }
    ends = {side: ((f"{axis}_edge",), names[index]) for side, index in zip((axis, f"{axis}_other"), where, strict=True)}
    pairs = [f"{names[i]} -- {names[k]}" for i, k in zip(*where, strict=True)]
    return xr.Dataset({**ends, **columns}, {f"{axis}_edge": pairs}, found.attrs)


def with_edges(fit: Any, tree: xr.DataTree, num_samples: int, num_edges: int, seed: int) -> xr.DataTree:
    """Add draws of the strongest edges to the posterior, and the graphs as a group of their own."""
    found = fit.graphs()
    posterior = tree["posterior"].to_dataset()
    for axis in AXES:
        table = strongest(found, axis, num_edges)
        names = found[axis].values if axis in found.coords else np.arange(found.sizes[axis])
        place = {name: i for i, name in enumerate(names.tolist())}
        first, second = (
            np.array([place[name] for name in table[side].values.tolist()]) for side in (axis, f"{axis}_other")
        )
        draws = edge_law(fit, axis).draw((first, second), num_samples, seed)
        dim = f"{axis}_edge"
        posterior[f"{axis}_partial_correlation"] = (("chain", "draw", dim), draws[None])
        posterior = posterior.assign_coords({dim: table[dim].values})
    posterior.attrs |= conventions(fit) | {
        "graphs": "point estimates while scales are drawn; edges drawn each by itself"
    }
    groups = {name: child.to_dataset() for name, child in tree.children.items()}
    return xr.DataTree.from_dict({f"/{k}": v for k, v in {**groups, "posterior": posterior, "graphs": found}.items()})


def log_density(fit: Any, data: Any) -> xr.DataArray:
    """Laplace's approximation of the density of each matrix; see `MEDMAGMAFit.log_density`."""
    dataset = checked(fit, data)
    inputs = to_inputs(fit.schema, dataset, device=fit.device)
    check_matrix("expression", dataset["expression"])
    guide, single = fit.guide, inputs["expression"].dim() == 2
    with isolated(0, dtype=torch.double), torch.no_grad():
        problem = ScaleProblem(fit.model, inputs["expression"], guide.point)
        graphs = guide.cell_precision, guide.gene_precision
        fitted = problem.gaussians(problem.modes(*graphs), *graphs, guide.e_step)
        values = np.array(problem.bounds(fitted, *graphs)) + log_normalisers(fit.model, guide.point)
    if single or fit.model.shared_scales:
        return xr.DataArray(values.sum(), name="log_density")
    coords = {"replicate": dataset["replicate"].values} if "replicate" in dataset.coords else {}
    return xr.DataArray(values, dims=("replicate",), coords=coords, name="log_density")


def conventions(fit: Any) -> dict[str, Any]:
    """What a reader of the numbers has to know."""
    return {
        "gauge": "sum log_u = 0, sum log_v = 0; equal mean diagonals of Psi_cell and Psi_gene",
        "cell_graph_prior": type(fit.model.cell_graph).__name__,
        "gene_graph_prior": type(fit.model.gene_graph).__name__,
        "e_step": fit.guide.e_step,
    }
