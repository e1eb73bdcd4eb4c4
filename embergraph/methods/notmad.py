"""NOTMAD, ready-made: the plan that fits it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor

from ..guides.notmad import NOTMADGuide
from ..inference import StoredDraws, register, svi
from ..inference.copies import float_dtype, make_pair, no_guide
from ..inference.density import LogDensity
from ..inference.inputs import Template, to_inputs
from ..inference.messengers import isolated
from ..inference.options import check_counts
from ..inference.schedules import WarmCosine
from ..models.notmad import NOTMAD
from . import _notmad_plan as plan
from ._notmad_checkpoint import SVI_EVERY, Stages, identity_of
from ._notmad_checks import check_data, check_options
from ._notmad_fit import NOTMADFit
from ._notmad_projected import SEARCH_STEPS, fit_projected
from ._notmad_search import collapses, has_many_genes, search_order
from ._notmad_start import RELAXED_STEPS, check_start, start_search

if TYPE_CHECKING:
    from jaxtyping import Int

Posterior = Literal["auto", "hmc", "mean_field", "bootstrap"]


def fit_notmad(
    model: NOTMAD,
    data: xr.Dataset,
    *,
    posterior: Posterior = "auto",
    num_restarts: int | None = None,
    num_steps: int = 1500,
    num_orders: int | None = None,
    num_warmup: int = 200,
    num_draws: int = 400,
    num_guide_steps: int | None = None,
    num_bootstrap: int = 96,
    full_encoder: bool = False,
    start: NOTMADFit | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> NOTMADFit:
    """Fit NOTMAD by the plan that was measured best.

    1. Order of the genes and weights of the encoder in turns from several starts, edges and noise integrated out (by
       Gaussian equations, whatever the likelihood). Where edges cannot be (archetypes of low rank or of factors) and
       for a relaxed `model` (order None): MAP of the relaxed model from several starts at once, the acyclicity weight
       annealed. A relaxed model stops here: the point estimate of the paper, under the model's own priors.
    2. Joint MAP given the order under the user's priors, alternating with the search over orders; then Gibbs sampling
       of orders. With more than 2000 archetypes x genes, one order is found among candidate regulators, and kept.
    3. Posterior given each sampled order, by HMC in whitened coordinates (one chain an order) or by a mean-field guide.

    A projected model takes another way from half as many starts: MAP of the relaxed model with the likelihood of cyclic
    networks, MAP of the projected model from the better half of them, then draws of everything, structure included, as
    modes of the posterior under random weights of the cells and a randomly moved prior (a Bayesian bootstrap).

    Parameters
    ----------
    model
        From `NOTMAD.for_data`; copied, not changed.
    data
        Standardised Dataset with ``expression`` and ``covariates``.
    posterior
        ``"hmc"``, ``"mean_field"``, or ``"auto"``: HMC up to 400 parameters and 5e5 parameters x cells, and mean field
        where cells have logits of their own. A projected model: ``"bootstrap"`` (also ``"auto"``) or, for a handful of
        genes and few cells, ``"hmc"``.
    num_restarts, num_steps
        Starts of stage 1 and their steps; the refits given orders take at most as many. By default 8 starts; where
        edges are integrated out 4, or 2 for many genes.
    num_orders
        Orders drawn in stage 2; components (or chains) of the posterior. By default 8, and 4 for many genes.
    num_warmup, num_draws
        Steps of HMC and draws kept of each chain.
    num_guide_steps
        Steps of SVI of the mean-field guide. By default 300, and 120 for many genes.
    num_bootstrap
        Draws of a projected model's posterior, in all.
    full_encoder
        Whether the mean-field guide gives hidden layers of a NAM encoder a posterior too; HMC always does.
    start
        An earlier fit, of other cells or under other priors, whose point takes the place of stage 1: no restarts, and
        nothing better is found than what lies near it. Same genes, covariates and archetypes; order, encoder, noise and
        posterior may differ.
    seed, device, progress
        As for `svi`.
    checkpoint
        File that finished stages are written to: starts and orders, points, parts of a bootstrap; and, beside it as
        ``CHECKPOINT.svi``, steps of the mean-field guide. If it exists the run goes on from it and ends where an
        uninterrupted one would have ended; a stage that was stopped midway, such as HMC or the search of a relaxed
        model, starts again. A run that has ended removes it; after Ctrl-C it stays.

    Returns
    -------
    NOTMADFit
        Stored draws (HMC), a mixture guide (mean field) or a point (relaxed model). After Ctrl-C: the point of stage 1,
        the guide as trained so far or the draws so far, with ``fit.settings["interrupted"]``.

    Raises
    ------
    DataError
        If the data are not centred, an option is unknown, or `start` is a fit of something else.
    SchemaError
        If data and model do not belong together.
    LoadError
        If the checkpoint is of another run, or no checkpoint.
    NumericalError
        If no start ends at finite numbers.
    """
    usual = plan.usual_sizes(model)
    num_restarts = usual["num_restarts"] if num_restarts is None else num_restarts
    num_orders = usual["num_orders"] if num_orders is None else num_orders
    num_guide_steps = usual["num_guide_steps"] if num_guide_steps is None else num_guide_steps
    counts = {
        "num_restarts": num_restarts, "num_steps": num_steps, "num_orders": num_orders, "num_warmup": num_warmup,
        "num_draws": num_draws, "num_guide_steps": num_guide_steps, "num_bootstrap": num_bootstrap,
    }  # fmt: skip
    check_counts(**counts)
    check_options(model, posterior, full_encoder=full_encoder)
    inputs = to_inputs(model.schema, data, device=device)
    check_data(model, data, inputs)
    template = Template.of(model.schema, data)
    if start is not None:
        check_start(start, model, template)
    with isolated(seed, dtype=float_dtype(inputs)) as store, torch.enable_grad(), pyro.validation_enabled(False):
        copied, _, _ = make_pair(model, no_guide, inputs)
        model = cast("NOTMAD", copied)
        options = {**counts, "posterior": posterior, "full_encoder": full_encoder, "seed": seed}
        identity = {} if checkpoint is None else identity_of(model, inputs, start, options)
        stages = Stages(checkpoint, identity, inputs["expression"].device)
        job = _Plan(model, inputs, template, store, seed, progress, num_steps, start, stages)
        if model.form == "projected":
            return fit_projected(
                job, posterior=posterior, num_restarts=num_restarts, num_bootstrap=num_bootstrap,
                num_warmup=num_warmup, num_draws=num_draws,
            )  # fmt: skip
        job.search(num_restarts)
        if model.form == "relaxed" or job.found.interrupted:
            return job.point_estimate()
        try:
            orders, point = job.orders(num_orders)
            density, starts = plan.given_orders(job.plain, inputs, orders, point)
            affordable = not model.has_logits and plan.prefers_hmc(density, job.num_cells)
            if posterior == "hmc" or (posterior == "auto" and affordable):
                return job.hmc(orders, density, starts, num_warmup, num_draws)
            return job.mean_field(data, orders, point, num_guide_steps, full_encoder=full_encoder)
        except KeyboardInterrupt:
            return job.point_estimate(interrupted=True)


class _Plan:
    def __init__(
        self,
        model: NOTMAD,
        inputs: dict[str, Tensor],
        template: Template,
        store: Any,
        seed: int,
        progress: bool,
        num_steps: int,
        start: NOTMADFit | None,
        stages: Stages,
    ) -> None:
        self.model, self.inputs, self.template, self.start, self.stages = model, inputs, template, start, stages
        self.store, self.seed, self.progress, self.num_steps = store, seed, progress, num_steps
        self.num_cells = len(inputs["expression"])
        self.fitted_orders = np.empty((0, 0), dtype=int)  # under which stage 2 has found the mode
        self.plain = plan.without_logits(model)  # stages before the posterior know no cells with logits of their own

    def search(self, num_restarts: int) -> None:
        """Stage 1, on the model itself if it is relaxed."""
        form = self.model.form
        self.searched = self.model if form == "relaxed" else plan.search_model(self.plain, self.num_cells)
        if self.start is not None:
            self.route = "an earlier fit"
            num_steps = min(RELAXED_STEPS, self.num_steps) if form == "relaxed" else 0
            search = partial(start_search, self.start, num_steps=num_steps)
        elif collapses(self.plain):
            many = has_many_genes(self.plain)
            self.route = "orders, candidate regulators only" if many else "orders, edges integrated out"
            search = partial(search_order, self.plain, num_restarts=num_restarts, once=self.stages.once)
        else:
            self.route = "relaxed networks, annealed"
            search = partial(
                plan.search, num_restarts=num_restarts, conflict=form == "projected",
                num_steps=min(SEARCH_STEPS, self.num_steps) if form == "projected" else self.num_steps,
            )  # fmt: skip
        run = partial(search, self.searched, self.inputs, progress=self.progress)
        self.density, self.found = self.stages.search(self.searched, self.inputs, run)
        self.point = plan.point_of(self.searched, self.density, self.found.points[self.found.best], self.inputs)

    def point_estimate(self, interrupted: bool = False) -> NOTMADFit:
        """The result of stage 1: a relaxed model and a point."""
        guide = AutoDelta(self.searched, init_loc_fn=init_to_value(values=self.point.values))
        guide(**self.inputs)
        return self.fit(self.searched, guide, None, "map", interrupted=interrupted or self.found.interrupted)

    def orders(self, num_orders: int) -> tuple[Int[np.ndarray, "draw gene"], plan.Point]:
        """Stage 2."""
        if self.model.fixed_order is not None:
            return self.model.fixed_order.cpu().numpy()[None].repeat(num_orders, 0), self.point
        found = self.stages.once("order", self._order)
        point = plan.Point(found["archetypes"], found["values"], found["mixture"])
        order = found["order"].cpu().numpy()
        self.fitted_orders = order[None]
        drawn = self.stages.once("orders", lambda: self._orders(order, point, num_orders))
        return drawn["orders"].cpu().numpy(), point

    def _order(self) -> dict[str, Any]:
        order, point = plan.find_order(
            self.plain, self.inputs, self.point, num_steps=min(600, self.num_steps), progress=self.progress
        )
        return {"order": torch.tensor(order), **vars(point)}

    def _orders(self, order: np.ndarray, point: plan.Point, num_orders: int) -> dict[str, Tensor]:
        orders = plan.draw_orders(
            self.plain, self.inputs, order, point, num_orders=num_orders, seed=self.seed, progress=self.progress
        )
        return {"orders": torch.tensor(orders)}

    def modes(self, density: LogDensity, starts: Tensor, num_steps: int) -> Tensor:
        """Where the posterior starts, under each order."""
        num_steps = min(num_steps, self.num_steps)
        climb = partial(plan.joint_map, density, starts, self.num_cells, num_steps=num_steps, progress=self.progress)
        return cast("Tensor", self.stages.once("modes", lambda: {"points": climb().points})["points"])

    def hmc(
        self, orders: np.ndarray, density: LogDensity, starts: Tensor, num_warmup: int, num_draws: int
    ) -> NOTMADFit:
        points = self.modes(density, starts, plan.FIT_STEPS)
        chains = plan.run_hmc(density, points, num_warmup=num_warmup, num_draws=num_draws, progress=self.progress)
        flat = density.unpack(chains.draws.flatten(0, 1))
        values = {name: v.unflatten(0, chains.draws.shape[:2]) for name, v in flat.items()}
        for name, value in density.fixed.items():
            values[name] = value.unsqueeze(1).expand(chains.draws.shape[0], chains.draws.shape[1], *value.shape[1:])
        shape = (1, chains.draws.shape[1])
        statistics = {
            "lp": chains.log_density.cpu().numpy(),
            "acceptance": np.tile(chains.acceptance.cpu().numpy()[:, None], shape),
            "divergences": np.tile(chains.divergences.cpu().numpy()[:, None] / shape[1], shape),
        }
        draws = StoredDraws({name: value.detach().contiguous() for name, value in values.items()}, statistics)
        return self.fit(self.model, None, draws, "order sampling + hmc", interrupted=chains.interrupted)

    def mean_field(
        self, data: xr.Dataset, orders: np.ndarray, point: plan.Point, num_guide_steps: int, *, full_encoder: bool
    ) -> NOTMADFit:
        unique, counts = plan.distinct(orders)
        density, starts = plan.given_orders(self.plain, self.inputs, unique, point)
        points = starts
        if not np.array_equal(unique, self.fitted_orders):
            num_steps = plan.REFIT_STEPS if self.fitted_orders.size else plan.FIT_STEPS  # near a mode or not
            points = self.modes(density, starts, num_steps)
        values = {
            name: value.reshape(len(unique), *value.shape[value.dim() - density.event_dims[name] :])
            for name, value in density.unpack(points).items()
        }
        like = points
        if self.model.mixture_prior is not None:
            values["mixture_scale"] = like.new_full((len(unique),), 0.3)
        weights = torch.as_tensor(counts, dtype=like.dtype)
        guide = NOTMADGuide.around(self.model, torch.as_tensor(unique), weights, values, full_encoder=full_encoder)
        fitted = svi(
            self.model,
            guide.to(like.device),
            data,
            num_steps=num_guide_steps,
            batch_size=min(plan.guide_cells(self.model), self.num_cells),
            learning_rate={"*scale.*": 4e-2, "*": 1e-2},
            schedules={"learning_rate": WarmCosine(0.02, 0.3)},
            seed=self.seed,
            device=like.device,
            progress=self.progress,
            checkpoint=self.stages.of_svi,
            checkpoint_every=SVI_EVERY,
            fit_class=NOTMADFit,
        )
        fit = cast("NOTMADFit", fitted)
        fit.settings |= self.facts("order sampling + mean field")
        if not fit.settings["interrupted"]:
            self.stages.remove()
        return fit

    def fit(
        self, model: NOTMAD, guide: Any, draws: StoredDraws | None, routine: str, *, interrupted: bool
    ) -> NOTMADFit:
        losses = (-self.found.history.T).cpu().tolist()
        settings = {**self.facts(routine), "interrupted": interrupted}
        if not interrupted:
            self.stages.remove()
        return NOTMADFit(
            model, guide, model.schema, self.template, draws=draws, history=losses, settings=settings, store=self.store
        )

    def facts(self, routine: str) -> dict[str, Any]:
        losses = (-self.found.log_density).cpu().tolist()
        about = {"routine": routine, "search": self.route, "seed": self.seed, "num_restarts": len(losses)}
        warm = {} if self.start is None else {"warm_start": str(self.start.settings.get("routine"))}
        return {**about, "search_losses": losses, **warm}


register(NOTMAD)
register(NOTMADGuide)
