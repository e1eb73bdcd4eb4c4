"""Priors of undirected graphs: laws of a precision factor Psi with unit diagonal, and regularisers without a law.

``graph.sample(axis, size)`` declares the sites of one axis (``"cell"`` or ``"gene"``) and returns Psi.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .distributions import SpikeSlab
from .errors import DataError
from .knowledge import known_nodes, known_pairs, names_in, places_of, positive

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

TIGHTNESS = 0.15
SLAB_WEIGHT = 10.0


class GraphPrior(torch.nn.Module, ABC):
    """What is believed about one axis before the data are seen."""

    proper = True
    unit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unit", torch.tensor(1.0), persistent=False)
        self.names: dict[str, list[str]] = {}

    def _know(self, name: str, values: Any, known: Tensor | None) -> None:
        """Keep what is known of nodes or pairs, and the names that it came with."""
        self.register_buffer(name, known)
        labels = None if known is None else names_in(values)
        if labels is not None:
            self.names[name] = labels

    def in_order(self, labels: list[str]) -> GraphPrior:
        """The same prior with everything that has names in the order of `labels`.

        Raises
        ------
        DataError
            If a node is missing.
        """
        made = copy.deepcopy(self)
        for name, found in made.names.items():
            place, known = places_of(name, found, labels), getattr(made, name)
            setattr(made, name, known[place] if known.ndim == 1 else known[place][:, place])
        made.names = {}
        return made

    @abstractmethod
    def sample(self, axis: str, size: int) -> Float[Tensor, "*draw node node_other"]:
        """Declare the sites of this axis and return the precision factor."""

    def linked(self, precision: Float[Tensor, "node node_other"]) -> Bool[Tensor, "node node_other"]:
        """Which pairs of a draw are edges."""
        return (precision != 0) & ~torch.eye(len(precision), dtype=torch.bool, device=precision.device)

    def check(self, axis: str, size: int) -> None:
        """Refuse a prior that does not fit `size` nodes.

        Raises
        ------
        DataError
            Naming the axis.
        """

    def site_dims(self, axis: str) -> dict[str, tuple[str, ...]]:
        """Event dims of the sites."""
        return {f"{axis}_edges": (f"{axis}_pair",)}

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return {"kind": type(self).__name__}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> GraphPrior:
        """Inverse of `settings`; numbers of buffers are in the saved state."""
        return cls(**{key: value for key, value in settings.items() if key != "kind"})


def unit_diagonal(edges: Float[Tensor, "*draw pair"], size: int) -> Float[Tensor, "*draw node node_other"]:
    """Symmetric matrix with ones on the diagonal and `edges` above it, row by row."""
    row, col = torch.triu_indices(size, size, 1, device=edges.device)
    upper = edges.new_zeros(*edges.shape[:-1], size * size).index_copy(-1, row * size + col, edges)
    upper = upper.unflatten(-1, (size, size))
    return upper + upper.mT + torch.eye(size, dtype=edges.dtype, device=edges.device)


def pairs_of(matrix: Float[Tensor, "*draw node node_other"]) -> Float[Tensor, "*draw pair"]:
    """Entries above the diagonal, in the order of `unit_diagonal`."""
    row, col = torch.triu_indices(matrix.shape[-1], matrix.shape[-1], 1, device=matrix.device)
    return matrix[..., row, col]


class SparseGraph(GraphPrior):
    """Most pairs are not linked: weights are zero with probability 1 - pi, else Normal(0, s^2).

        eta ~ Normal(log(degree / (size - 1)), 0.15^2),   1 / s^2 ~ Gamma(10, 10 slab_scale^2)
        logit pi_ik = eta + log_odds_ik + log r_i + log r_k
        w_ik ~ pi_ik Normal(0, s^2) + (1 - pi_ik) Normal(0, spike_scale^2),   Psi = I + W

    eta must be tight when there is one matrix: with little information per pair, a loose one invents edges.

    Parameters
    ----------
    expected_degree
        Neighbours of a node.
    slab_scale
        Guess of s, in units of a diagonal of one.
    log_odds
        What is known of pairs, e.g. a reference network: added to the prior log-odds; symmetric. A DataFrame or
        DataArray is put in the order of the data by its names (`MEDMAGMA.for_data`); an array is taken as it is.
    propensity
        What is known of nodes, e.g. regulators or degrees: r, positive; only ratios count; a Series goes by its names.
        Knowing the hubs is worth
        more than any penalty.
    hubs
        Shape kappa of a Gamma(kappa, kappa) prior of unknown propensities; None: all nodes alike. Use 3 for graphs
        that are believed to have hubs; it harms graphs that have none.
    closure
        Prior standard deviation of the bonus in log-odds of a pair that closes a triangle of likely edges, which the EM
        guide learns: cliques and bands close their triangles, trees do not. None: no bonus. A law of graphs with it
        has no normaliser, so draws of this prior, and `svi` and `mcmc`, go without.
    spike_scale
        Standard deviation of what counts as no edge.
    """

    log_odds: Tensor | None
    propensity: Tensor | None

    def __init__(
        self,
        expected_degree: float = 2.0,
        slab_scale: float = 0.25,
        *,
        log_odds: Float[Tensor, "node node_other"] | None = None,
        propensity: Float[Tensor, " node"] | None = None,
        hubs: float | None = None,
        closure: float | None = 0.45,
        spike_scale: float = 0.005,
    ) -> None:
        super().__init__()
        self.expected_degree = positive("expected_degree", expected_degree)
        self.slab_scale, self.spike_scale = positive("slab_scale", slab_scale), positive("spike_scale", spike_scale)
        self.hubs = None if hubs is None else positive("hubs", hubs)
        self.closure = None if closure is None else positive("closure", closure)
        self._know("log_odds", log_odds, None if log_odds is None else known_pairs(log_odds, "log_odds"))
        self._know("propensity", propensity, None if propensity is None else known_nodes(propensity))

    def check(self, axis: str, size: int) -> None:
        """Refuse knowledge of another number of nodes."""
        for name, known in (("log_odds", self.log_odds), ("propensity", self.propensity)):
            if known is not None and known.shape[0] != size:
                raise DataError(f"{axis} graph: found {name} of {known.shape[0]} nodes; wanted {size}")
        if self.expected_degree >= size - 1:
            raise DataError(f"{axis} graph: found expected_degree {self.expected_degree}; wanted less than {size - 1}")

    def linked(self, precision: Float[Tensor, "node node_other"]) -> Bool[Tensor, "node node_other"]:
        """Pairs whose weight is above what the spike gives, ten times its scale."""
        return super().linked(precision) & (precision.abs() > 10 * self.spike_scale)

    def base_log_odds(self, size: int) -> float:
        """Prior mean of eta."""
        return math.log(self.expected_degree / (size - 1))

    def sample(self, axis: str, size: int) -> Float[Tensor, "*draw node node_other"]:
        """Draw hyperparameters and weights."""
        eta = pyro.sample(f"{axis}_log_odds", dist.Normal(self.unit.new_tensor(self.base_log_odds(size)), TIGHTNESS))
        rate = self.unit.new_tensor(SLAB_WEIGHT * self.slab_scale**2)
        slab_precision = pyro.sample(f"{axis}_slab_precision", dist.Gamma(self.unit.new_tensor(SLAB_WEIGHT), rate))
        logits = eta.unsqueeze(-1) + self._known_log_odds(axis, size)
        law = SpikeSlab(logits.sigmoid(), slab_precision.rsqrt().unsqueeze(-1), self.unit.new_tensor(self.spike_scale))
        edges = pyro.sample(f"{axis}_edges", law.to_event(1))  # (pair,)
        return unit_diagonal(edges, size)

    def _known_log_odds(self, axis: str, size: int) -> Float[Tensor, "*draw pair"]:
        total = self.unit.new_zeros(size * (size - 1) // 2)
        if self.log_odds is not None:
            total = total + pairs_of(self.log_odds)
        row, col = torch.triu_indices(size, size, 1, device=total.device)
        if self.propensity is not None:
            total = total + self.propensity[row].log() + self.propensity[col].log()
        if self.hubs is not None:
            kappa = self.unit.new_tensor(self.hubs)
            hubs = pyro.sample(f"{axis}_propensity", dist.Gamma(kappa, kappa).expand((size,)).to_event(1))
            total = total + hubs[..., row].log() + hubs[..., col].log()
        return total

    def site_dims(self, axis: str) -> dict[str, tuple[str, ...]]:
        """Event dims of the sites."""
        return {f"{axis}_edges": (f"{axis}_pair",), f"{axis}_propensity": (axis,)}

    def settings(self) -> dict[str, Any]:
        """JSON description; matrices are in the saved state and leave their size."""
        numbers = {
            key: getattr(self, key) for key in ("expected_degree", "slab_scale", "hubs", "closure", "spike_scale")
        }
        sizes = {key: len(known) for key in ("log_odds", "propensity") if (known := getattr(self, key)) is not None}
        return {"kind": type(self).__name__, **numbers, **sizes}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> SparseGraph:
        """Inverse of `settings`."""
        options = {key: value for key, value in settings.items() if key not in ("kind", "log_odds", "propensity")}
        log_odds = torch.zeros(settings["log_odds"], settings["log_odds"]) if "log_odds" in settings else None
        propensity = torch.ones(settings["propensity"]) if "propensity" in settings else None
        return cls(**options, log_odds=log_odds, propensity=propensity)


class GaussianGraph(GraphPrior):
    """Every pair is linked a little: w_ik ~ Normal(0, s^2), s ~ HalfNormal(scale). For cliques and bands.

    Parameters
    ----------
    scale
        Prior scale of s.
    """

    def __init__(self, scale: float = 0.25) -> None:
        super().__init__()
        self.scale = positive("scale", scale)

    def sample(self, axis: str, size: int) -> Float[Tensor, "*draw node node_other"]:
        """Draw the scale and the weights."""
        s = pyro.sample(f"{axis}_edge_scale", dist.HalfNormal(self.unit * self.scale))
        law = dist.Normal(self.unit.new_zeros(size * (size - 1) // 2), s.unsqueeze(-1))
        return unit_diagonal(pyro.sample(f"{axis}_edges", law.to_event(1)), size)

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return {"kind": type(self).__name__, "scale": self.scale}


class LaplaceGraph(GraphPrior):
    """w_ik ~ Laplace(0, scale): the mode is the L1-penalised (bigraphical lasso, TeraLasso) estimate.

    At the mode diagonals are free; their mean is one.

    Parameters
    ----------
    scale
        Scale of the weights; smaller is sparser.
    """

    def __init__(self, scale: float = 0.08) -> None:
        super().__init__()
        self.scale = positive("scale", scale)

    def sample(self, axis: str, size: int) -> Float[Tensor, "*draw node node_other"]:
        """Draw the weights."""
        law = dist.Laplace(self.unit.new_zeros(size * (size - 1) // 2), self.unit * self.scale)
        return unit_diagonal(pyro.sample(f"{axis}_edges", law.to_event(1)), size)

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return {"kind": type(self).__name__, "scale": self.scale}


class SpectralGraph(GraphPrior):
    """No law but a regulariser of eigenvalues, as in GmGM: every entry of Psi is free, diagonals too.

    Parameters
    ----------
    shrink
        rho in S <- (1 - rho) S + rho tr(S)/size I. Without any the estimate from one matrix does not exist. ``"auto"``
        takes it from the Ledoit-Wolf intensities, which serves simulated graphs but is too little for counts.
    ridge
        Weight of the squared eigenvalues.
    """

    proper = False

    def __init__(self, shrink: float | str = 0.95, ridge: float = 0.0) -> None:
        super().__init__()
        if shrink != "auto" and not (isinstance(shrink, int | float) and 0 <= shrink < 1):
            raise DataError(f"shrink: found {shrink!r}; wanted 'auto' or a number in [0, 1)")
        if not ridge >= 0:
            raise DataError(f"ridge: found {ridge!r}; wanted a number of at least 0")
        self.shrink, self.ridge = shrink, ridge

    def sample(self, axis: str, size: int) -> Float[Tensor, "*draw node node_other"]:
        """Score any symmetric matrix alike."""
        return pyro.sample(
            f"{axis}_precision", dist.ImproperUniform(constraints.independent(constraints.real, 2), (), (size, size))
        )

    def site_dims(self, axis: str) -> dict[str, tuple[str, ...]]:
        """Event dims of the site."""
        return {f"{axis}_precision": (axis, f"{axis}_other")}

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return {"kind": type(self).__name__, "shrink": self.shrink, "ridge": self.ridge}


class FixedGraph(GraphPrior):
    """A precision factor that is known, such as one fitted before; the identity makes the axis independent.

    Parameters
    ----------
    precision
        Symmetric matrix, or a number of nodes for the identity.
    """

    precision: Tensor

    def __init__(self, precision: Float[Tensor, "node node_other"] | int) -> None:
        super().__init__()
        matrix = torch.eye(precision) if isinstance(precision, int) else known_pairs(precision, "precision")
        self._know("precision", precision, matrix)

    def check(self, axis: str, size: int) -> None:
        """Refuse a matrix of another size."""
        if len(self.precision) != size:
            raise DataError(f"{axis} graph: found a precision of {len(self.precision)} nodes; wanted {size}")

    def sample(self, axis: str, size: int) -> Float[Tensor, "node node_other"]:
        """Nothing to draw."""
        return self.precision

    def site_dims(self, axis: str) -> dict[str, tuple[str, ...]]:
        """There are no sites."""
        return {}

    def settings(self) -> dict[str, Any]:
        """JSON description; the numbers are in the saved state."""
        return {"kind": type(self).__name__, "precision": len(self.precision)}


GRAPH_PRIORS: dict[str, type[GraphPrior]] = {
    cls.__name__: cls for cls in (SparseGraph, GaussianGraph, LaplaceGraph, SpectralGraph, FixedGraph)
}
"""What a file may name."""
