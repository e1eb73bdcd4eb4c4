"""NOTMAD, ready-made: the plan that fits it and the questions that its posterior answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta, init_to_value
from scipy.special import logsumexp
from torch import Tensor

from ..guides.notmad import NOTMADGuide
from ..inference import Fit, StoredDraws, register, svi
from ..inference.copies import float_dtype, make_pair, no_guide
from ..inference.figures import Picture
from ..inference.inputs import DataLike, Template, as_dataset, to_inputs
from ..inference.messengers import isolated
from ..inference.options import check_counts
from ..inference.readings import check_level
from ..inference.schedules import WarmCosine
from ..models.notmad import NOTMAD
from . import _notmad_plan as plan
from ._notmad_anndata import AnnDataOut
from ._notmad_causal import Interventions
from ._notmad_checks import check_data, check_options
from ._notmad_effects import CovariateEffects
from ._notmad_figures import network_figures
from ._notmad_map import ArchetypeMap
from ._notmad_networks import Networks
from ._notmad_projected import SEARCH_STEPS, fit_projected
from ._notmad_readings import network_readings
from ._notmad_report import network_report
from ._notmad_search import collapses, has_many_genes, search_order
from ._notmad_start import RELAXED_STEPS, check_start, start_search

if TYPE_CHECKING:
    from jaxtyping import Int

Posterior = Literal["auto", "hmc", "mean_field", "bootstrap"]


class NOTMADFit(CovariateEffects, ArchetypeMap, Interventions, AnnDataOut, Networks, Fit):
    """A fitted NOTMAD: a `Fit` that also tells networks of cells."""

    exchangeable = ("archetype",)

    def conditioned_log_density(self, data: DataLike, *, num_samples: int = 500, seed: int = 0) -> xr.DataArray:
        """Log density of each cell with its logits read from its own expression: how well it is described.

        Not a prediction: the expression that is scored has chosen the mixture. `log_density` is the held-out score,
        with logits from the covariates alone. Both agree for models without `mixture_scale`.

        Returns
        -------
        xr.DataArray
            log of the mean of p(X_i | eta_i, rest) over the guide's eta_i given C_i and X_i, (cell,).
        """
        found = self.posterior(data, num_samples, predictive=False, prior=False, seed=seed)["log_likelihood"]
        terms = found["expression"].stack(_draw=("chain", "draw")).transpose("_draw", "cell")
        density = logsumexp(terms.values, 0) - np.log(terms.sizes["_draw"])
        return terms.isel(_draw=0, drop=True).copy(data=density).rename("conditioned_log_density")

    def report(self, data: DataLike, test: DataLike | None = None, *, num_samples: int = 500) -> xr.Dataset:
        """`Fit.report`, with rows on orders, acyclicity and the mixing of networks."""
        table = super().report(data, test, num_samples=num_samples)
        return network_report(self, table, as_dataset(data if test is None else test))

    def readings(
        self, data: DataLike, *, num_samples: int = 200, level: float = 0.9, seed: int = 0
    ) -> dict[str, xr.Dataset]:
        """``network`` and ``edge`` of up to 25 cells, evenly spaced; see `Fit.readings`."""
        check_level(level)
        return network_readings(self, as_dataset(data, self.schema), num_samples, level=level, seed=seed)

    def figures(self, data: DataLike, *, num_samples: int = 200, seed: int = 0) -> list[Picture]:
        """The mean network, edges that differ between cells, archetypes, and cells between them; see `Fit.figures`."""
        return network_figures(self, as_dataset(data), num_samples, seed)


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
    NumericalError
        If no start ends at finite numbers.
    """
    usual = plan.usual_sizes(model)
    num_restarts = usual["num_restarts"] if num_restarts is None else num_restarts
    num_orders = usual["num_orders"] if num_orders is None else num_orders
    num_guide_steps = usual["num_guide_steps"] if num_guide_steps is None else num_guide_steps
    check_counts(
        num_restarts=num_restarts, num_steps=num_steps, num_orders=num_orders, num_warmup=num_warmup,
        num_draws=num_draws, num_guide_steps=num_guide_steps, num_bootstrap=num_bootstrap,
    )  # fmt: skip
    check_options(model, posterior, full_encoder=full_encoder)
    inputs = to_inputs(model.schema, data, device=device)
    check_data(model, data, inputs)
    template = Template.of(model.schema, data)
    if start is not None:
        check_start(start, model, template)
    with isolated(seed, dtype=float_dtype(inputs)) as store, torch.enable_grad(), pyro.validation_enabled(False):
        copied, _, _ = make_pair(model, no_guide, inputs)
        model = cast("NOTMAD", copied)
        job = _Plan(model, inputs, template, store, seed, progress, num_steps, start)
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
        start: NOTMADFit | None = None,
    ) -> None:
        self.model, self.inputs, self.template, self.start = model, inputs, template, start
        self.store, self.seed, self.progress, self.num_steps = store, seed, progress, num_steps
        self.num_cells = len(inputs["expression"])
        self.fitted_orders = np.empty((0, 0), dtype=int)  # under which stage 2 has found the mode
        self.plain = plan.without_logits(model)  # stages before the posterior know no cells with logits of their own

    def search(self, num_restarts: int) -> None:
        """Stage 1, on the model itself if it is relaxed."""
        form = self.model.form
        self.searched = self.model if form == "relaxed" else plan.search_model(self.plain, self.num_cells)
        self.route = "relaxed networks, annealed"
        if self.start is not None:
            self.route = "an earlier fit"
            num_steps = min(RELAXED_STEPS, self.num_steps) if form == "relaxed" else 0
            self.density, self.found = start_search(
                self.start, self.searched, self.inputs, num_steps=num_steps, progress=self.progress
            )
        elif collapses(self.plain):
            many = has_many_genes(self.plain)
            self.route = "orders, candidate regulators only" if many else "orders, edges integrated out"
            self.density, self.found = search_order(
                self.plain, self.searched, self.inputs, num_restarts=num_restarts, progress=self.progress
            )
        else:
            self.density, self.found = plan.search(
                self.searched, self.inputs, num_restarts=num_restarts,
                num_steps=min(SEARCH_STEPS, self.num_steps) if form == "projected" else self.num_steps,
                progress=self.progress, conflict=form == "projected",
            )  # fmt: skip
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
        order, point = plan.find_order(
            self.plain, self.inputs, self.point, num_steps=min(600, self.num_steps), progress=self.progress
        )
        self.fitted_orders = order[None]
        orders = plan.draw_orders(
            self.plain, self.inputs, order, point, num_orders=num_orders, seed=self.seed, progress=self.progress
        )
        return orders, point

    def hmc(self, orders: np.ndarray, density: Any, starts: Tensor, num_warmup: int, num_draws: int) -> NOTMADFit:
        mode = plan.joint_map(
            density, starts, self.num_cells, num_steps=min(400, self.num_steps), progress=self.progress
        )
        chains = plan.run_hmc(density, mode.points, num_warmup=num_warmup, num_draws=num_draws, progress=self.progress)
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
            points = plan.joint_map(
                density, starts, self.num_cells, num_steps=min(num_steps, self.num_steps), progress=self.progress
            ).points
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
            fit_class=NOTMADFit,
        )
        fit = cast("NOTMADFit", fitted)
        fit.settings |= self.facts("order sampling + mean field")
        return fit

    def fit(
        self, model: NOTMAD, guide: Any, draws: StoredDraws | None, routine: str, *, interrupted: bool
    ) -> NOTMADFit:
        losses = (-self.found.history.T).cpu().tolist()
        settings = {**self.facts(routine), "interrupted": interrupted}
        return NOTMADFit(
            model, guide, model.schema, self.template, draws=draws, history=losses, settings=settings, store=self.store
        )

    def facts(self, routine: str) -> dict[str, Any]:
        losses = (-self.found.log_density).cpu().tolist()
        about = {"routine": routine, "search": self.route, "seed": self.seed, "num_restarts": len(losses)}
        warm = {} if self.start is None else {"warm_start": str(self.start.settings.get("routine"))}
        return {**about, "search_losses": losses, **warm}


register(NOTMADFit)
register(NOTMAD)
register(NOTMADGuide)
