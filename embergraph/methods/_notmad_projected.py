"""The plan of NOTMAD for conflicting orders: a point under the projected likelihood, and draws with their structure.

Which edges the projection keeps is a function of the weights, so the log posterior jumps wherever two edges of a cycle
change places in a cell: thousands of small jumps between typical draws. Chains with fixed structure are too narrow near
a turning edge, and inconsistent when projected anew; chains that find the structure anew at every step are exact but
take tiny steps (``"hmc"``, for small problems and as the reference of tests). The plan draws by bootstrap instead: each
draw is a mode of the posterior with random weights of cells and a randomly moved prior, structure and all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.infer.autoguide import AutoDelta, init_to_value
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..inference import StoredDraws
from ..inference.bootstrap import Perturbation, PerturbedDensity, perturb
from ..inference.density import LogDensity
from ..inference.maximum import Maximum, maximize
from . import _notmad_plan as plan

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..models.notmad import NOTMAD
    from .notmad import NOTMADFit, _Plan

SEARCH_STEPS = 800
TUNING_STEPS = 400
TUNING_RATE = 5e-3
DRAW_STEPS = 100
DRAW_RATES = {"": 1.5e-2, "encoder_weights": 6e-2, "encoder_bias": 6e-2}  # whose priors move far
HOLD_STEPS = 15  # steps of an optimiser between two projections
NEAR = 10.0  # nats from the best point within which others are starts of draws, too
MOST_STARTS = 4
CHUNK_ELEMENTS = 2_000_000  # weights of networks worked on at a time, more leave the cache
HMC_CHAINS = 4


def fit_projected(
    job: _Plan, *, posterior: str, num_restarts: int, num_bootstrap: int, num_warmup: int, num_draws: int
) -> NOTMADFit:
    """Search, tune, draw; see `fit_notmad` for the arguments."""
    job.search(max(1, num_restarts // 2))
    work = _Projected(job)
    if job.found.interrupted:
        return work.point_fit(interrupted=True)
    try:
        work.tune()
        if posterior == "hmc":
            return work.hmc(num_warmup, num_draws)
        return work.bootstrap(num_bootstrap)
    except KeyboardInterrupt:
        return work.point_fit(interrupted=True)


class HeldStructure(LogDensity):
    """The log density of a projected model that projects only now and then, for optimisers.

    Between two projections the edges that each cell keeps are held, for the vectors that it is called with.

    Parameters
    ----------
    model, inputs, fixed
        As for `LogDensity`.
    """

    def __init__(self, model: NOTMAD, inputs: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> None:
        super().__init__(model, inputs, fixed)
        self.projected, self._age = model, 0
        # With minibatches, projecting all cells now and then costs more than the batch in every step.
        self.every = HOLD_STEPS if len(inputs["covariates"]) <= HOLD_STEPS * plan.BATCH[1] else 0

    def __call__(self, vector: Float[Tensor, "draw dim"], jacobian: bool = True) -> Float[Tensor, " draw"]:
        """Log density, structure held."""
        if self.every and self._age % self.every == 0:
            self.projected.kept = self.structure(vector)
        self._age += 1
        return super().__call__(vector, jacobian)

    def structure(self, vector: Float[Tensor, "draw dim"]) -> Tensor:
        """Which edges the cells keep, (draw, cell, regulator, target)."""
        self.projected.kept = None
        with torch.no_grad():
            values = {**self.unpack(vector), **self.fixed}
            for name, value in self.fixed.items():
                values[name] = value.expand(len(vector), *value.shape)
            finite = {name: torch.nan_to_num(value) for name, value in values.items()}
            return self.projected.networks_of(self.inputs["covariates"], finite)[0] != 0

    def climb(self, climber: Callable[[], Maximum]) -> Maximum:
        """Run an optimiser on this density and let go of the structure afterwards, whatever happens."""
        self._age = 0
        try:
            return climber()
        finally:
            self.projected.kept = None

    def exactly(self, vector: Float[Tensor, "draw dim"]) -> Float[Tensor, " draw"]:
        """Log density without Jacobian, every network projected."""
        self.projected.kept = None
        with torch.no_grad():
            return super().__call__(vector, False)


class _Projected:
    def __init__(self, job: _Plan) -> None:
        self.job, self.model, self.inputs = job, job.model, job.inputs
        self.values = dict(job.point.values)
        zero = self.model.encoder.location.new_zeros(())
        self.density = HeldStructure(self.model, self.inputs, {"encoder_log_amplitude": zero})

    def tune(self) -> None:
        """Points under the projected likelihood and the user's priors, from the better half of the search."""
        kept = self.job.stages.once("tune", self._tuned)
        self.points, self.log_density = kept["points"], kept["log_density"]
        self._take(self.points)

    def _tuned(self) -> dict[str, Tensor]:
        job, density = self.job, self.density
        best = job.found.log_density.argsort(descending=True)[: max(2, len(job.found.points) // 2)]
        found = density.climb(
            lambda: maximize(
                density, self.starts(job.found.points[best]), num_steps=min(TUNING_STEPS, job.num_steps),
                learning_rate=TUNING_RATE, scale=float(job.num_cells), batch=plan.BATCH, progress=job.progress,
                label="MAP, projected",
            )
        )  # fmt: skip
        log_density = density.exactly(found.points)
        order = log_density.argsort(descending=True)
        points = found.points[order]
        if found.interrupted:
            self._take(points)
            raise KeyboardInterrupt
        return {"points": points, "log_density": log_density[order]}

    def _take(self, points: Float[Tensor, "restart dim"]) -> None:
        """Have the first point as the best so far."""
        self.values = {name: value[0] for name, value in sites(self.density, points[:1]).items()}

    def starts(self, points: Float[Tensor, "restart dim"]) -> Float[Tensor, "restart dim"]:
        """Vectors of the projected model at points of the search; sites that the search lacks start at a draw."""
        searched = sites(self.job.density, points)
        known = {
            name: searched.get(name, self.density.example[name].expand(len(points), *self.density.example[name].shape))
            for name in self.density.shapes
        }
        return self.density.pack(known)

    def modes(self) -> Float[Tensor, "start dim"]:
        """The tuned points that are as good as the best one, as far as the search can tell."""
        return aligned(self.density, self.points[self.log_density >= self.log_density[0] - NEAR][:MOST_STARTS])

    def bootstrap(self, num_draws: int) -> NOTMADFit:
        """Modes of perturbed posteriors, each from one of the tuned points."""
        job, density, modes = self.job, self.density, self.modes()
        pairs = max(1, round(num_draws / (2 * len(modes))))
        starts, perturbation = perturb(density, modes, "cell", pairs)
        size = 2 * max(1, CHUNK_ELEMENTS // (2 * job.num_cells * self.model.num_genes**2))
        parts = torch.arange(len(starts), device=starts.device).split(size)
        found: list[Tensor] = []
        for i, part in enumerate(parts):
            one = PerturbedDensity(density, Perturbation(perturbation.weights[part], perturbation.shift[part]), "cell")
            label = f"posterior draws, part {i + 1} of {len(parts)}"
            try:
                kept = job.stages.once(f"draws {i}", lambda: self._climb(one, starts[part], label))  # noqa: B023
            except KeyboardInterrupt:
                break
            found.append(kept["points"])
        if not found:
            raise KeyboardInterrupt
        draws = torch.cat(found)
        interrupted = len(draws) < len(starts)
        shape = (1, len(draws)) if interrupted else (len(modes), 2 * pairs)
        statistics = {"lp": density.exactly(draws).reshape(shape).cpu().numpy()}
        stored = StoredDraws(self._stored(draws, shape), statistics)
        return self._fit(stored, None, "projected map + bootstrap", interrupted=interrupted, num_modes=len(modes))

    def _climb(self, density: LogDensity, starts: Tensor, label: str) -> dict[str, Tensor]:
        job = self.job
        found = self.density.climb(
            lambda: maximize(
                density, starts, num_steps=min(DRAW_STEPS, job.num_steps), learning_rate=DRAW_RATES,
                scale=float(job.num_cells), batch=plan.BATCH, progress=job.progress, label=label,
            )
        )  # fmt: skip
        if found.interrupted:
            raise KeyboardInterrupt
        return {"points": found.points}

    def hmc(self, num_warmup: int, num_draws: int) -> NOTMADFit:
        """Chains that project at every position: the force holds the structure, acceptance does not.

        The force is a function of position, so that leapfrog steps keep volume and can be taken back: exact.
        """
        density = LogDensity(self.model, self.inputs)
        values = sites(self.density, self.modes())
        values["encoder_log_amplitude"] = values["encoder_bias"].new_zeros(len(values["encoder_bias"]))
        which = torch.arange(HMC_CHAINS) % len(values["encoder_bias"])
        points = density.pack({name: value[which] for name, value in values.items()})
        chains = plan.run_hmc(density, points, num_warmup=num_warmup, num_draws=num_draws, progress=self.job.progress)
        shape = (HMC_CHAINS, chains.draws.shape[1])
        unpacked = density.unpack(chains.draws.flatten(0, 1))
        statistics = {
            "lp": chains.log_density.cpu().numpy(),
            "acceptance": np.tile(chains.acceptance.cpu().numpy()[:, None], (1, shape[1])),
            "divergences": np.tile(chains.divergences.cpu().numpy()[:, None] / shape[1], (1, shape[1])),
        }
        stored = StoredDraws({n: v.detach().unflatten(0, shape).contiguous() for n, v in unpacked.items()}, statistics)
        return self._fit(
            stored, None, "projected map + hmc", interrupted=chains.interrupted, num_modes=len(self.modes())
        )

    def point_fit(self, *, interrupted: bool) -> NOTMADFit:
        """The best point so far, projected."""
        guide = AutoDelta(self.model, init_loc_fn=init_to_value(values=self.values))
        guide(**self.inputs)
        return self._fit(None, guide, "projected map", interrupted=interrupted)

    def _stored(self, draws: Float[Tensor, "draw dim"], shape: tuple[int, int]) -> dict[str, Tensor]:
        values = {name: value.detach() for name, value in self.density.unpack(draws).items()}
        for name, value in self.density.fixed.items():
            values[name] = value.expand(len(draws), *(1,) * self.density.nesting, *value.shape)
        return {name: value.unflatten(0, shape).contiguous() for name, value in values.items()}

    def _fit(self, draws: StoredDraws | None, guide: Any, routine: str, *, interrupted: bool, **more: Any) -> NOTMADFit:
        fit = self.job.fit(self.model, guide, draws, routine, interrupted=interrupted)
        fit.settings |= {**more, "held": [] if routine.endswith("hmc") else ["encoder_log_amplitude"]}
        return fit


def aligned(density: HeldStructure, points: Float[Tensor, "start dim"]) -> Float[Tensor, "start dim"]:
    """The same points with archetypes renamed such that their weights in the cells are closest to the first point's.

    Restarts name archetypes at random; means over draws of several modes speak of one name only after this.
    """
    values = sites(density, points)
    with torch.no_grad():
        held = {name: value.expand(len(points), *value.shape) for name, value in density.fixed.items()}
        Z = density.projected.mixture_of(density.inputs["covariates"], values | held).mT  # (start, archetype, cell)
    for i in range(1, len(points)):
        _, match = linear_sum_assignment(torch.cdist(Z[0], Z[i]).square().cpu().numpy())
        for name, value in values.items():
            dims = density.projected.schema.site_dims.get(name, ())
            if "archetype" in dims:
                value[i] = value[i].index_select(dims.index("archetype"), torch.as_tensor(match, device=value.device))
    return density.pack(values)


def sites(density: LogDensity, points: Float[Tensor, "draw dim"]) -> dict[str, Tensor]:
    """Constrained values shaped (draw, *event)."""
    with torch.no_grad():
        return {
            name: value.reshape(len(points), *value.shape[value.dim() - density.event_dims[name] :]).clone()
            for name, value in density.unpack(points).items()
        }


def central_values(draws: StoredDraws) -> dict[str, Float[Tensor, "1 *site"]]:
    """Medians of all sites over the draws of the best mode: the centre that networks are reported at.

    A mean over draws of networks that turn keeps a little of every direction. Projecting it undoes most of that; the
    median is sharper by a hair (AUPR .950 against .946, and .941 at the mode). Modes are not mixed, since archetypes
    have no names.
    """
    chain = int(np.asarray(draws.statistics["lp"]).mean(1).argmax())
    return {name: value[chain].median(0, keepdim=True).values for name, value in draws.values.items()}


def central_mixtures(
    model: NOTMAD, table: Float[np.ndarray, "cell covariate"], values: Mapping[str, Tensor]
) -> Float[np.ndarray, "cell regulator target"]:
    """Mixtures of the archetypes, before projection, of cells at one set of values."""
    with torch.no_grad():
        Z = model.mixture_of(torch.as_tensor(table).to(model.encoder.location), values)[0]
        W = model.archetypes_of(values)[0]
        return (Z @ W.flatten(-2)).unflatten(-1, W.shape[-2:]).cpu().numpy()
