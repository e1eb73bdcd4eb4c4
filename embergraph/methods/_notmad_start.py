"""Warm starts: the point of an earlier fit in place of the random search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..inference.density import LogDensity
from ..inference.inputs import Template
from ..inference.maximum import Maximum, maximize
from ..inference.schedules import Geometric
from ..models.notmad import NOTMAD
from ..models.notmad_parts import flat_values
from ..models.parts.acyclicity_factor import OrderMask
from ..models.parts.archetypes import place
from ..models.parts.encoders import Encoder
from ..models.parts.errors import DataError
from ..models.parts.projection import project, topological_order
from ..validation import listed
from ._notmad_plan import ANNEALING, BATCH, SEARCH_RATES, Inputs, Values

if TYPE_CHECKING:
    from jaxtyping import Float

    from .notmad import NOTMADFit

NUM_DRAWS = 64
RELAXED_STEPS = 300
RIDGE = 1e-4
KEPT = ("intercepts", "sigma", "degrees_of_freedom", "mixture_scale", "loadings", "readout", "memberships")


def check_start(start: NOTMADFit, model: NOTMAD, template: Template) -> None:
    """Refuse an earlier fit whose numbers do not go into the new model.

    Raises
    ------
    DataError
        If genes, covariates, the number or kind of archetypes, or the kind of standardisation differ.
    """
    if not isinstance(getattr(start, "model", None), NOTMAD):
        raise DataError(f"start: found {type(start).__name__}; wanted a fit of NOTMAD")
    for dim in ("gene", "covariate"):
        found, wanted = start.template.coords.get(dim), template.coords.get(dim)
        if found != wanted:
            raise DataError(f"start: found {dim}s {_few(found)}; wanted those of the data, {_few(wanted)}")
    for what in ("num_genes", "num_archetypes"):
        if getattr(start.model, what) != getattr(model, what):
            raise DataError(f"start: found {what} {getattr(start.model, what)}; wanted {getattr(model, what)}")
    kinds = start.model.archetypes.settings(), model.archetypes.settings()
    if kinds[0] != kinds[1]:
        raise DataError(f"start: found archetypes {kinds[0]}; wanted {kinds[1]}")
    scales = start.template.attrs.get("standardized"), template.attrs.get("standardized")
    if scales[0] != scales[1]:
        raise DataError(f"start: found data standardised by {scales[0]}; wanted {scales[1]}")


def start_search(
    start: NOTMADFit, model: NOTMAD, inputs: Inputs, *, num_steps: int, progress: bool
) -> tuple[LogDensity, Maximum]:
    """What the random search would have found: the density of the relaxed `model`, and one point of it.

    Parameters
    ----------
    start
        Passed `check_start`.
    model
        Relaxed: the model of the search, or the one that is to be fitted.
    inputs
        The data.
    num_steps
        Steps from the point of `start`, at the final strength of the acyclicity factor; 0 for models that later stages
        improve anyway.
    progress
        Whether to show a bar.
    """
    zero = model.encoder.location.new_zeros(())
    density = LogDensity(model, inputs, {"encoder_log_amplitude": zero})
    known = {**density.example, **start_values(start, model, inputs["covariates"])}
    points = density.pack({name: known[name].to(zero).unsqueeze(0) for name in density.shapes})
    if num_steps:
        ends = {name: schedule(1.0) for name, schedule in ANNEALING[type(model.acyclicity)].items()}
        found = maximize(
            density,
            points,
            num_steps=num_steps,
            learning_rate={name: 0.3 * rate for name, rate in SEARCH_RATES.items()},
            schedules={name: Geometric(value, value) for name, value in ends.items()},
            scale=float(len(inputs["covariates"])),
            batch=BATCH,
            progress=progress,
            label="MAP from an earlier fit",
        )
        return density, found
    with torch.no_grad():
        log_density = density(points, jacobian=False)
    return density, Maximum(points, log_density, log_density.unsqueeze(0), False)


def start_values(start: NOTMADFit, model: NOTMAD, covariates: Float[Tensor, "cell covariate"]) -> Values:
    """Sites of a relaxed `model` at the point of an earlier fit, shaped as events."""
    old, point = start.model, central_point(start)
    values = {name: point[name] for name in KEPT if name in point}
    if "sigma" in values:
        values["sigma"] = _with_noise(values["sigma"], model)
    matrices = old.archetypes_of({name: value.unsqueeze(0) for name, value in point.items()})[0]
    if not old.archetypes.acyclic and old.form == "exact":
        order = point.get("order", old.fixed_order)
        matrices = place(point["edges"], old.archetypes.num_nodes(old.num_genes), order)
    elif not old.archetypes.acyclic:
        matrices = old.archetypes.sorted_part(point, matrices)
    off_diagonal = ~torch.eye(matrices.shape[-1], dtype=torch.bool, device=matrices.device)
    values["edges"] = matrices[:, off_diagonal]
    if isinstance(model.acyclicity, OrderMask):
        rank = topological_order(project(matrices.square().sum(0).sqrt()).networks).argsort().to(matrices)
        values["order_scores"] = (rank - rank.mean()) / rank.std()
    return values | _encoder_weights(old, model.encoder, point, covariates)


def central_point(start: NOTMADFit) -> Values:
    """One set of values that goes together: the medians of the draws of one order, the most frequent one.

    Of stored draws of several modes those of the best, since modes may call archetypes differently.
    """
    if start.draws is not None and "lp" in start.draws.statistics:
        chain = int(np.asarray(start.draws.statistics["lp"]).mean(1).argmax())
        draws = {name: value[chain] for name, value in start.draws.values.items()}
    else:
        draws = start.global_draws(NUM_DRAWS)
    flat = flat_values(start.model, draws)
    if "order" in flat:
        _, group, counts = flat["order"].unique(dim=0, return_inverse=True, return_counts=True)
        flat = {name: value[group == counts.argmax()] for name, value in flat.items()}
    return {name: value.median(0).values for name, value in flat.items()}


def _with_noise(sigma: Tensor, model: NOTMAD) -> Tensor:
    """One noise scale for all genes or one a gene, as the model has it."""
    if model.noise == "equal":
        return sigma.log().mean().exp()
    return sigma.expand(model.num_genes)


def _encoder_weights(
    old: NOTMAD, new: Encoder, point: Mapping[str, Tensor], covariates: Float[Tensor, "cell covariate"]
) -> Values:
    """Weights of an encoder under which the training cells have the logits that the earlier fit gives them.

    Those of the earlier fit where the encoders are equal, else by ridge regression on the features of the new one.
    """
    theta = {name: value for name, value in point.items() if name.startswith("encoder_")}
    one, two = old.encoder.state_dict(), new.state_dict()
    same = type(old.encoder) is type(new) and all(torch.equal(v.cpu(), two[name].cpu()) for name, v in one.items())
    if same:
        return {name: value for name, value in theta.items() if name != "encoder_log_amplitude"}
    with torch.no_grad():
        eta = old.encoder(covariates.to(old.encoder.location), theta).to(covariates)
        hidden = {name: theta.get(name, value).to(covariates) for name, value in new.hidden_weights().items()}
        features = new.features(covariates, hidden).double()
        design = torch.cat([features, features.new_ones(len(features), 1)], 1)
        ridge = torch.full((design.shape[1],), RIDGE * len(design)).to(design)
        ridge[-1] = 0.0
        weights = torch.linalg.solve(design.mT @ design + ridge.diag(), design.mT @ eta.double()).to(eta)
    return {**hidden, "encoder_weights": weights[:-1], "encoder_bias": weights[-1]}


def _few(names: Sequence[object] | None) -> str:
    return "without names" if names is None else listed(names)
