"""Direct effects of environments on single genes: most are zero, the others of unknown size.

| symbol | name | shape |
|---|---|---|
| pi | ``gene_effect_weights`` | (component,) |
| beta | ``gene_effects`` | (condition, gene) |

beta_eg ~ pi_0 delta_0 + sum_c pi_c Normal(0, s_c^2) with known scales s, and pi ~ Dirichlet with ten pseudo-counts on
the atom (Stephens 2017, "False discovery rates: a new deal", Biostatistics). Effects add to the output of a decoder, so
that under a softmax they are natural logarithms of ratios. Those of the control environment are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from .errors import DataError
from .sem import without_cell_axis

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["EFFECT_SCALES", "AtomNormalMixture", "GeneEffects"]

EFFECT_SCALES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""From effects that nobody would see to a factor of 25."""


class AtomNormalMixture(TorchDistribution):
    """Mixture of an atom at zero and Normals.

    Its density is with respect to a point mass at zero plus the Lebesgue measure: at exactly zero it is the weight of
    the atom, elsewhere the density of the Normals times their weights.

    Parameters
    ----------
    weights
        Probabilities of the atom, first, and of the Normals; they sum to one.
    loc, scale
        Means and standard deviations of the Normals, in units of the value. Left axes broadcast.
    """

    arg_constraints = {  # noqa: RUF012  (torch declares it as an instance attribute)
        "weights": constraints.simplex,
        "loc": constraints.independent(constraints.real, 1),
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real

    def __init__(
        self,
        weights: Float[Tensor, "*b component"],
        loc: Float[Tensor, "*b normal"],
        scale: Float[Tensor, "*b normal"],
        validate_args: bool | None = None,
    ) -> None:
        self.weights, self.loc, self.scale = weights, loc, scale
        shapes = (part.shape[:-1] for part in (weights, loc, scale))
        super().__init__(torch.broadcast_shapes(*shapes), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AtomNormalMixture:
        """Broadcast to `batch_shape`."""
        new = self._get_checked_instance(AtomNormalMixture, _instance)
        new.weights, new.loc, new.scale = self.weights, self.loc, self.scale
        super(AtomNormalMixture, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Float[Tensor, "*b"]:
        """Mean."""
        return (self.weights[..., 1:] * self.loc).sum(-1).expand(self.batch_shape)

    @property
    def variance(self) -> Float[Tensor, "*b"]:
        """Variance."""
        second = (self.weights[..., 1:] * (self.loc**2 + self.scale**2)).sum(-1)
        return (second - self.mean**2).clamp(min=0).expand(self.batch_shape)

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape"]:
        """Draw: first the component, then the value."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            uniform, normal = self.loc.new_empty((*shape, 1)).uniform_(), self.loc.new_empty((*shape, 1)).normal_()
            total = self.weights.cumsum(-1)  # whose end is not quite 1: a last component without weight is not drawn
            pick = (uniform * total[..., -1:] >= total[..., :-1]).sum(-1, keepdim=True)
            at = (pick - 1).clamp(min=0)
            loc, scale = (part.expand(*shape, part.shape[-1]).gather(-1, at) for part in (self.loc, self.scale))
            value = loc + scale * normal
            return torch.where(pick == 0, torch.zeros_like(value), value).squeeze(-1)

    def log_prob(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log of the weight of the atom at zero, log density of the Normals elsewhere."""
        if self._validate_args:
            self._validate_sample(value)
        normal = -0.5 * ((value.unsqueeze(-1) - self.loc) / self.scale) ** 2 - self.scale.log()
        density = (normal + self.weights[..., 1:].log()).logsumexp(-1) - 0.5 * math.log(2 * math.pi)
        log_prob = torch.where(value == 0, self.weights[..., 0].log(), density)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))


class GeneEffects(nn.Module):
    """Prior of the effects of environments on single genes.

    Parameters
    ----------
    num_environments, num_genes
        Size of the effects.
    control
        Position of the environment without effects, if there is one.
    scales
        Standard deviations s of the Normals, in the unit of the decoder's output (natural logarithms under a softmax).
    null_pseudo_counts
        Entries without effect that the prior of the weights is worth.

    Raises
    ------
    DataError
        If a number is out of range.
    """

    scales: Tensor
    concentration: Tensor
    is_control: Tensor

    def __init__(
        self,
        num_environments: int,
        num_genes: int,
        control: int | None = None,
        *,
        scales: Sequence[float] = EFFECT_SCALES,
        null_pseudo_counts: float = 10.0,
    ) -> None:
        super().__init__()
        if num_environments < 1 or num_genes < 1:
            raise DataError(f"effects: found {num_environments} environments, {num_genes} genes; wanted at least one")
        if control is not None and not 0 <= control < num_environments:
            raise DataError(f"control: found {control}; wanted a position from 0 to {num_environments - 1}")
        if not scales or min(scales) <= 0 or not all(map(math.isfinite, scales)):
            raise DataError(f"scales: found {list(scales)}; wanted positive numbers")
        if not 0 <= null_pseudo_counts < math.inf:
            raise DataError(f"null_pseudo_counts: found {null_pseudo_counts}; wanted a number that is not negative")
        self.num_environments, self.num_genes, self.control = num_environments, num_genes, control
        self._settings = {"scales": [float(s) for s in scales], "null_pseudo_counts": float(null_pseudo_counts)}
        concentration = torch.ones(len(scales) + 1)
        concentration[0] += null_pseudo_counts
        is_control = torch.zeros(num_environments, dtype=torch.bool)
        if control is not None:
            is_control[control] = True
        self.register_buffer("scales", torch.tensor(self._settings["scales"]))
        self.register_buffer("concentration", concentration)
        self.register_buffer("is_control", is_control)

    @property
    def site_dims(self) -> dict[str, tuple[str, ...]]:
        """Names of the event dims of the sites."""
        return {"gene_effect_weights": ("effect_component",), "gene_effects": ("condition", "gene")}

    def forward(self) -> Float[Tensor, "*draw condition gene"]:
        """Draw the weights and the effects."""
        weights = pyro.sample("gene_effect_weights", dist.Dirichlet(self.concentration))  # (*b, component)
        effects = pyro.sample("gene_effects", self.law(weights))  # (*b, condition, gene)
        return without_cell_axis(effects, 2)

    def law(self, weights: Float[Tensor, "*b component"]) -> Any:
        """Distribution of the effects given the weights, with event dims (condition, gene)."""
        null = torch.zeros_like(weights)
        null[..., 0] = 1
        weights = torch.where(self.is_control[:, None, None], null[..., None, None, :], weights[..., None, None, :])
        shape = (*weights.shape[:-3], self.num_environments, self.num_genes)
        return AtomNormalMixture(weights, torch.zeros_like(self.scales), self.scales).expand(shape).to_event(2)

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        shape = {"num_environments": self.num_environments, "num_genes": self.num_genes, "control": self.control}
        return {"kind": type(self).__name__} | shape | self._settings

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> GeneEffects:
        """Inverse of `settings`."""
        return cls(**{name: value for name, value in settings.items() if name != "kind"})
