"""Guide of NOTMAD: a mixture over orders of the genes, with an independent Normal for every weight given the order.

    q(order, theta) = sum_m w_m [order = order_m] prod_i Normal(u_i; loc_mi, scale_mi)

with u the unconstrained values of edges, intercepts, noise and encoder weights. It keeps that edges depend on the
order, and gives up the dependence between weights given the order: right on average, but too narrow for the strongest
edges (whose size trades against the encoder); HMC keeps that. Hidden layers of a `NAMEncoder` are point masses unless
asked for. Where cells have logits of their own, these are read from covariates and expression by one network
(`CellLogits`), given the encoder's weights.

Components have different orders and do not overlap, so the mixture's density is a component's own times its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from ..models.notmad import NOTMAD
from ..models.parts.distributions import FiniteOrders
from ..models.parts.errors import SchemaError
from .parts.cell_logits import CellLogits

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SUPPORTS = {"real": constraints.real, "positive": constraints.positive}
DRAWS = "_strata"


class NOTMADGuide(PyroModule):
    """Mixture over orders of mean-field Normals.

    Parameters
    ----------
    orders
        Distinct orders of the genes, one a component.
    weights
        Their probabilities.
    locations
        Starting values of the unconstrained sites, ``(component, *shape)`` by site.
    supports
        ``"real"`` or ``"positive"`` by site.
    points
        Sites held at one value a component.
    has_order
        Whether the model has a site ``order`` (False for a model of one given order).
    cell_logits
        Posterior of the logits of cells, for models that have them.
    scale
        Starting standard deviation of every unconstrained value.
    """

    orders: Tensor
    weights: Tensor

    def __init__(
        self,
        orders: Int[Tensor, "component gene"],
        weights: Float[Tensor, " component"],
        locations: Mapping[str, Float[Tensor, "component *shape"]],
        supports: Mapping[str, str],
        points: Mapping[str, Float[Tensor, "component *shape"]] | None = None,
        *,
        has_order: bool = True,
        cell_logits: CellLogits | None = None,
        scale: float = 0.03,
    ) -> None:
        super().__init__()
        self.cell_logits = cell_logits
        self.has_order, self.supports = has_order, dict(supports)
        self.register_buffer("orders", orders)
        self.register_buffer("weights", weights / weights.sum())
        self.loc, self.scale, self.point = PyroModule("loc"), PyroModule("scale"), nn.Module()
        for name, value in locations.items():
            setattr(self.loc, name, PyroParam(value.detach().clone()))
            setattr(self.scale, name, PyroParam(torch.full_like(value, scale), constraint=constraints.positive))
        for name, value in (points or {}).items():
            self.point.register_buffer(name, value.detach().clone())

    @classmethod
    def around(
        cls,
        model: NOTMAD,
        orders: Int[Tensor, "component gene"],
        weights: Float[Tensor, " component"],
        values: Mapping[str, Float[Tensor, "component *shape"]],
        *,
        full_encoder: bool = False,
    ) -> NOTMADGuide:
        """Start from constrained values of the model's sites, one set a component.

        Parameters
        ----------
        model
            Whose posterior is wanted.
        orders, weights, values
            Components: their orders, probabilities and starting values.
        full_encoder
            Whether hidden layers of the encoder have a posterior too, or are held at their values.

        Raises
        ------
        SchemaError
            If a prior's support is neither the real line nor the positive numbers.
        """
        covariates = model.encoder.location.new_zeros(2, model.encoder.num_covariates)
        with poutine.block():
            trace = poutine.trace(model).get_trace(covariates)
        supports, locations, points = {}, {}, {}
        for name, value in values.items():
            if name in model.encoder.hidden and not full_encoder:
                points[name] = value
                continue
            kind = _kind(trace.nodes[name]["fn"].support)
            if kind is None:
                support = trace.nodes[name]["fn"].support
                raise SchemaError(
                    f"{name}: found a prior on {support}; wanted one on the real line or positive numbers"
                )
            supports[name] = kind
            locations[name] = biject_to(SUPPORTS[kind]).inv(value)
        logits = CellLogits(model.encoder, model.num_genes, model.num_archetypes) if model.has_logits else None
        has_order = model.form == "exact" and model.fixed_order is None
        return cls(orders, weights, locations, supports, points, has_order=has_order, cell_logits=logits)

    def forward(
        self, covariates: Float[Tensor, "cell covariate"], expression: Float[Tensor, "cell gene"] | None = None
    ) -> None:
        """Draw the order, then everything else given the order."""
        if self.has_order:
            orders = FiniteOrders(self.orders, self.weights)
            component = orders.index(pyro.sample("order", orders))  # (*draw,)
        else:
            component = torch.zeros((), dtype=torch.long, device=self.orders.device)
        drawn: dict[str, Tensor] = {}
        for name, support in self.supports.items():
            loc, scale = getattr(self.loc, name)[component], getattr(self.scale, name)[component]
            event_dim = getattr(self.loc, name).dim() - 1
            normal = dist.Normal(loc, scale).to_event(event_dim)
            u = pyro.sample(f"{name}_unconstrained", normal, infer={"is_auxiliary": True})
            transform = biject_to(SUPPORTS[support])
            value = transform(u)
            log_density = -transform.log_abs_det_jacobian(u, value)
            log_density = log_density.flatten(log_density.dim() - event_dim).sum(-1) if event_dim else log_density
            drawn[name] = pyro.sample(name, dist.Delta(value, log_density=log_density, event_dim=event_dim))
        for name, point in self.point.named_buffers():
            drawn[name] = pyro.sample(name, dist.Delta(point[component], event_dim=point.dim() - 1))
        if self.cell_logits is None:
            return
        with pyro.plate("cell", len(covariates), dim=-1):
            C_i = pyro.subsample(covariates, event_dim=1)
            if expression is None:  # nothing of the cell is known but its covariates: the caller wants the prior
                raise SchemaError("expression: found none; wanted that of the cells whose logits are read from it")
            X_i = pyro.subsample(expression, event_dim=1)
            mean, spread = self.cell_logits(C_i, X_i, drawn)
            pyro.sample("logits", dist.Normal(mean, spread).to_event(1))

    def objective(self, model: NOTMAD, inputs: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Negative ELBO with the order summed exactly and an antithetic pair of draws for each order."""
        num = 2 * len(self.orders)
        share = (self.weights / 2).repeat(2).unsqueeze(-1)
        with poutine.scale(scale=share), _Strata(self.orders), pyro.plate(DRAWS, num, dim=-2):
            guide_trace = poutine.trace(self).get_trace(**inputs)
        with poutine.scale(scale=share), pyro.plate(DRAWS, num, dim=-2):
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(**inputs)
        return guide_trace.log_prob_sum() - model_trace.log_prob_sum()

    def settings(self) -> dict[str, Any]:
        """JSON description: shapes and supports; the numbers are in the saved state."""
        return {
            "orders": list(self.orders.shape),
            "locations": {name: list(getattr(self.loc, name).shape) for name in self.supports},
            "supports": self.supports,
            "points": {name: list(point.shape) for name, point in self.point.named_buffers()},
            "has_order": self.has_order,
            "cell_logits": None if self.cell_logits is None else self.cell_logits.settings(),
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> NOTMADGuide:
        """A guide of the described shapes, whose numbers the saved state then fills."""
        orders = torch.arange(settings["orders"][1]).repeat(settings["orders"][0], 1)
        locations = {name: torch.zeros(shape) for name, shape in settings["locations"].items()}
        points = {name: torch.zeros(shape) for name, shape in settings["points"].items()}
        weights = torch.ones(len(orders))
        logits = settings["cell_logits"] and CellLogits.from_settings(settings["cell_logits"])
        return cls(
            orders,
            weights,
            locations,
            settings["supports"],
            points,
            has_order=settings["has_order"],
            cell_logits=logits,
        )


def _kind(support: Any) -> str | None:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real:
        return "real"
    return "positive" if getattr(support, "lower_bound", None) == 0 and not hasattr(support, "upper_bound") else None


class _Strata(Messenger):
    """One antithetic pair of draws for each order, in place of draws by weight."""

    def __init__(self, orders: Int[Tensor, "component gene"]) -> None:
        super().__init__()
        self._orders = orders

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "order":
            msg["value"], msg["done"] = self._orders.repeat(2, 1).unsqueeze(1), True
        elif msg["infer"].get("is_auxiliary"):
            normal = msg["fn"].base_dist if hasattr(msg["fn"], "base_dist") else msg["fn"]
            half = torch.randn_like(normal.loc[: len(self._orders)])
            msg["value"], msg["done"] = normal.loc + normal.scale * torch.cat([half, -half]), True
