"""The stages of NOTMAD's plan: a point by annealing, orders of the genes, a posterior given the orders."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ..guides.orders import OrderScore, climb, sample_orders
from ..inference.density import LogDensity
from ..inference.hmc import Chains, negative_hessian, whitened_hmc, whitening
from ..inference.maximum import Maximum, maximize
from ..inference.quasi_newton import ascend
from ..inference.schedules import Geometric, Schedule
from ..models.notmad import NOTMAD
from ..models.parts.acyclicity_factor import AcyclicityFactor, OrderMask, Scope
from ..models.parts.priors import Prior
from ..models.parts.projection import is_acyclic, project, topological_order
from ._notmad_search import collapses, has_many_genes

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Inputs = Mapping[str, Tensor]
Values = dict[str, Tensor]

SEARCH_RATES = {"": 1e-2, "encoder_weights": 4.5e-2, "encoder_bias": 3e-2}
GIVEN_ORDER_RATES = {"": 1e-2, "encoder_log_amplitude": 0.0}
L1 = 0.01
ANNEALING: dict[type, dict[str, Schedule]] = {
    AcyclicityFactor: {"acyclicity.weight": Geometric(0.05, 1e3, 0.4)},
    OrderMask: {"acyclicity.temperature": Geometric(1.0, 1e-2, 0.4)},
}
CONFLICT = {"acyclicity.weight": Geometric(0.01, 10.0, 0.4)}
BATCH = ("cell", 1024)  # rows of a step of a point search; more change the point by less than its error
ALL_CELLS = 2 * BATCH[1]
FIT_STEPS, REFIT_STEPS = 400, 60
SMALL = 80  # archetypes x genes up to which a plan does not save
CURVATURE = {"edges": 1 / (2 * 0.3**2), "sigma": 4.0, "encoder_log_amplitude": 4.0}
"""Curvature that a prior adds to the whitening; 1 elsewhere. Sets the efficiency of HMC, not its target."""


@dataclass(frozen=True)
class Point:
    """A point estimate of everything but the order.

    Attributes
    ----------
    archetypes
        W_k, dense.
    values
        The other sites.
    mixture
        Z of the training cells.
    """

    archetypes: Float[Tensor, "archetype regulator target"]
    values: Values
    mixture: Float[Tensor, "cell archetype"]


def search_model(model: NOTMAD, num_cells: int) -> NOTMAD:
    """The relaxed model with the priors of the search: L1 on edges, Normal on the encoder, flat on the noise.

    The user's own priors enter afterwards, given orders. The acyclicity function is expm up to 20 genes, logdet above;
    its scope the union of the archetypes, or samples where weights of archetypes have no bound or orders may conflict.
    """
    encoder = copy.deepcopy(model.encoder)
    encoder.weight_prior = Prior(dist.Normal(0.0, 1.0))
    encoder.bias_prior = Prior(dist.Normal(0.0, 1.0))
    encoder.amplitude_prior = Prior(dist.Normal(0.0, 0.5))
    function, conflict = "expm" if model.num_genes <= 20 else "logdet", model.form == "projected"
    scope: Scope = "samples" if model.mixing == "identity" or conflict else "union"
    relaxed = NOTMAD(
        model.num_genes,
        encoder,
        model.num_archetypes,
        noise=model.noise,
        order=None,
        edge_prior=dist.Laplace(0.0, 1 / (L1 * num_cells)),
        noise_prior=dist.LogNormal(0.0, 10.0),
        likelihood=model.likelihood,
        mixing=model.mixing,
        archetypes=model.archetypes,
        acyclicity=AcyclicityFactor(function, scope, cyclic_likelihood=conflict and model.likelihood.has_scale),
    )
    return relaxed.to(encoder.location)


def without_logits(model: NOTMAD) -> NOTMAD:
    """The model with tau_z = 0; the model itself where it is."""
    if not model.has_logits:
        return model
    plain = copy.deepcopy(model)
    plain.mixture_prior = plain.mixture_scale = None
    return plain


def search(
    model: NOTMAD, inputs: Inputs, *, num_restarts: int, num_steps: int, progress: bool, conflict: bool = False
) -> tuple[LogDensity, Maximum]:
    """Restarts of the relaxed model with the acyclicity weight raised geometrically after 40 % of the steps.

    With `conflict` it ends low, where networks are still a little cyclic and edges of either direction have survived.
    """
    zero = model.encoder.location.new_zeros(())
    density = LogDensity(model, inputs, {"encoder_log_amplitude": zero})
    starts = zero.new_zeros(num_restarts, density.num_dims)
    spread = {"edges": 0.05, "loadings": 0.05, "encoder_weights": 0.45, "readout": 1.0, "memberships": 1.0}
    for name, where in density.slices().items():
        if name in spread:
            starts[:, where] = spread[name] * torch.randn_like(starts[:, where])
        elif name in model.encoder.hidden:
            starts[:, where] = _prior_starts(model, name, num_restarts).to(zero)
    n = inputs["covariates"].shape[0]
    found = maximize(
        density,
        starts,
        num_steps=num_steps,
        learning_rate=SEARCH_RATES,
        schedules=CONFLICT if conflict else ANNEALING[type(model.acyclicity)],
        clip={name: 10.0 for name in density.shapes if name in model.archetypes.site_dims},
        scale=float(n),
        batch=BATCH,
        progress=progress,
        label=f"MAP, {num_restarts} starts",
    )
    return density, found


def _prior_starts(model: NOTMAD, name: str, num_restarts: int) -> Tensor:
    draws = [model.encoder.hidden_weights()[name].flatten() for _ in range(num_restarts)]
    return torch.stack(draws)


def point_of(model: NOTMAD, density: LogDensity, vector: Float[Tensor, " dim"], inputs: Inputs) -> Point:
    """Values of one vector of `density`, and what follows from them."""
    with torch.no_grad():
        padded = {**density.unpack(vector.unsqueeze(0)), **density.fixed}
        values = {n: v.reshape(v.shape[v.dim() - density.event_dims[n] :]) for n, v in padded.items() if n != "order"}
        order = density.fixed.get("order")
        given = values if order is None else {**values, "order": order}
        archetypes = model.archetypes_of(given)[0]
        mixture = model.mixture_of(inputs["covariates"], given)[0]
    return Point(archetypes, values, mixture)


def starting_order(model: NOTMAD, point: Point) -> Int[np.ndarray, " gene"]:
    """Topological order of the projected union of the archetypes."""
    union = model.archetypes.sorted_part(point.values, point.archetypes).square().sum(0).sqrt()
    return topological_order(union if bool(is_acyclic(union)) else project(union).networks).cpu().numpy()


def given_orders(
    model: NOTMAD, inputs: Inputs, orders: Int[np.ndarray, "component gene"], point: Point
) -> tuple[LogDensity, Float[Tensor, "component dim"]]:
    """Density of the exact model given one order a row, and the vectors of `point` under each."""
    like = point.archetypes
    index = torch.as_tensor(orders, device=like.device)
    fixed: Values = {"order": index.unsqueeze(1)} if model.fixed_order is None else {}
    density = LogDensity(model, inputs, fixed)
    known = {**density.example, **point.values}  # sites of a hierarchical prior start at a draw of theirs
    shared = {n: known[n].expand(len(index), *known[n].shape) for n in density.shapes}
    weights = {name: known[name] for name in model.archetypes.site_dims}
    return density, density.pack({**shared, **model.archetypes.given_orders(weights, like, index)})


def joint_map(density: LogDensity, starts: Tensor, num_cells: int, *, num_steps: int, progress: bool) -> Maximum:
    """Mode of the exact model given orders, under the user's priors, at a fixed amplitude of the encoder.

    The joint mode over amplitude and weights is not a typical point: both shrink together. By L-BFGS on all cells where
    there are at most `ALL_CELLS`.
    """
    if num_cells <= ALL_CELLS:
        found = ascend(
            density, starts, num_steps=num_steps, tolerance=1e-6, held=["encoder_log_amplitude"], progress=progress,
            label="MAP given orders",
        )  # fmt: skip
    else:
        found = maximize(
            density, starts, num_steps=num_steps, learning_rate=GIVEN_ORDER_RATES, scale=float(num_cells), batch=BATCH,
            progress=progress, label="MAP given orders",
        )  # fmt: skip
    if found.interrupted:
        raise KeyboardInterrupt
    return found


def find_order(
    model: NOTMAD, inputs: Inputs, point: Point, *, num_rounds: int = 3, num_steps: int = 600, progress: bool = True
) -> tuple[Int[np.ndarray, " gene"], Point]:
    """Climb the collapsed score and refit the point in turns until the order stays.

    The score is that of dense Gaussian equations, a stand-in where likelihood or archetypes are others. Networks among
    factors have none: they keep the order of the search, and so do many genes, whose search has scored it.
    """
    if not model.archetypes.acyclic:
        return starting_order(model, point), point
    expression = inputs["expression"].cpu().double().numpy()
    n = len(expression)
    order, many = starting_order(model, point), has_many_genes(model)
    for turn in range(1 if many else num_rounds):
        climbed = order
        if not many:
            score = OrderScore(expression, point.mixture.cpu().double().numpy(), model.noise)
            climbed = climb(score, order, progress=progress)
        if turn and (climbed == order).all():
            break
        order = climbed
        density, starts = given_orders(model, inputs, order[None], point)
        found = joint_map(density, starts, n, num_steps=num_steps, progress=progress)
        point = point_of(model, density, found.points[found.best], inputs)
    return order, point


def draw_orders(
    model: NOTMAD, inputs: Inputs, order: Int[np.ndarray, " gene"], point: Point, *, num_orders: int, seed: int,
    progress: bool,
) -> Int[np.ndarray, "draw gene"]:  # fmt: skip
    """Orders from their posterior given the mixture of `point`, with repetitions; of many genes the one found."""
    if not model.archetypes.acyclic or has_many_genes(model):
        return order[None].repeat(num_orders, 0)
    expression = inputs["expression"].cpu().double().numpy()
    score = OrderScore(expression, point.mixture.cpu().double().numpy(), model.noise)
    orders, _ = sample_orders(score, order, num_orders=num_orders, seed=seed, progress=progress)
    return orders


def run_hmc(
    density: LogDensity, points: Float[Tensor, "chain dim"], *, num_warmup: int, num_draws: int, progress: bool
) -> Chains:
    """One chain an order from its mode, whitened by the curvature there."""
    curvature = points.new_ones(density.num_dims)
    for name, where in density.slices().items():
        curvature[where] = CURVATURE.get(name, 1.0)
    likelihood = negative_hessian(lambda vector: density.terms(vector)["expression"], points)
    roots = whitening(likelihood + curvature.diag())
    return whitened_hmc(density, points, roots, num_warmup=num_warmup, num_draws=num_draws, progress=progress)


def distinct(orders: Int[np.ndarray, "draw gene"]) -> tuple[Int[np.ndarray, "component gene"], np.ndarray]:
    """The different orders and how often each was drawn."""
    unique, counts = np.unique(orders, axis=0, return_counts=True)
    return unique, counts


def usual_sizes(model: NOTMAD) -> dict[str, int]:
    """Starts, orders and steps of the guide by default: fewer where each costs more, and orders differ in few genes."""
    few = model.num_archetypes * model.num_genes <= SMALL
    starts = (4 if few else 2) if collapses(model) else 8
    return {"num_restarts": starts, "num_orders": 8 if few else 4, "num_guide_steps": 300 if few else 120}


def guide_cells(model: NOTMAD) -> int:
    """Cells of a step of the guide: all of some hundred for few genes, never under 128."""
    return max(128, min(BATCH[1], 20 * SMALL**2 // (model.num_archetypes * model.num_genes)))


def prefers_hmc(density: LogDensity, num_cells: int) -> bool:
    """Whether HMC is affordable: up to 400 parameters, and parameters x cells up to 5e5."""
    return density.num_dims <= 400 and density.num_dims * num_cells <= 5e5
