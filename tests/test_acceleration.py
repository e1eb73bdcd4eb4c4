"""SQUAREM: exact where it should be, and EM of a mixture with it: the same end, far fewer sweeps, never a fall."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO
from pyro.nn import PyroModule, PyroParam

from embergraph.inference import Fit, em
from embergraph.inference.acceleration import Squarem, squarem_step
from embergraph.inference.messengers import isolated
from embergraph.models.parts.errors import LoadError, NumericalError

QUICK = {"num_steps": 30, "tolerance": None, "accelerate": "squarem", "progress": False}
CAREFUL = {"num_steps": 20_000, "tolerance": 1e-13, "progress": False}


def observations(seed, centers=(0.0, 2.0)):
    rng = np.random.default_rng(seed)
    return {"y": ("cell", rng.normal(rng.choice(centers, 300), 1.0))}


DATA = observations(0)


def mixture(y):
    """Two Normals that overlap; labels are summed out."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Uniform(-20.0, 20.0))
        scale = pyro.sample("scale", dist.Uniform(0.0, 20.0))
    with pyro.plate("cell", len(y)):
        label = pyro.sample("label", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y_obs", dist.Normal(loc[label], scale[label]), obs=y)


class Guide(PyroModule):
    """Point masses; textbook EM."""

    monotone = True

    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.tensor([0.5, 0.5]))
        self.register_buffer("loc", torch.tensor([-1.0, 1.0]))
        self.spread = PyroParam(torch.ones(2), constraint=constraints.positive)

    def forward(self, y):
        pyro.sample("weights", dist.Delta(self.weights, event_dim=1))
        with pyro.plate("component", 2):
            pyro.sample("loc", dist.Delta(self.loc))
            pyro.sample("scale", dist.Delta(self.spread))

    def joint(self, y):
        return self.weights.log() + dist.Normal(self.loc, self.spread).log_prob(y.unsqueeze(-1))

    def update(self, model, inputs, step):
        y = inputs["y"]
        shares = self.joint(y).softmax(-1)
        totals = shares.sum(0)
        self.weights = totals / len(y)
        self.loc = shares.mT @ y / totals
        self.spread = ((shares * (y.unsqueeze(-1) - self.loc) ** 2).sum(0) / totals).sqrt()
        return self.joint(y).logsumexp(-1).sum() - 4 * math.log(20.0) - 2 * math.log(2.0)

    def free_parameters(self):
        return torch.cat([self.weights.log(), self.loc, self.spread.log()])

    def set_free_parameters(self, vector):
        weights, self.loc, scale = vector.split(2)
        self.weights, self.spread = weights.softmax(-1), scale.exp()


class Killed(BaseException):
    """What nothing catches."""


class Breaks(Guide):
    """Raises `error`, or spoils a number, in the sweeps for which `when(step, extrapolated)` holds."""

    def __init__(self, when, error=None):
        super().__init__()
        self.when, self.error, self.extrapolated = when, error, False

    def set_free_parameters(self, vector):
        super().set_free_parameters(vector)
        self.extrapolated = True

    def update(self, model, inputs, step):
        breaks, self.extrapolated = self.when(step, self.extrapolated), False
        bound = super().update(model, inputs, step)
        if breaks:
            self.loc[0] = math.nan
            if self.error is not None:
                raise self.error
        return bound


def parameters(fit):
    with torch.no_grad():
        return fit.guide.free_parameters().numpy()


def assert_same(a, b):
    np.testing.assert_array_equal(a.history, b.history)
    np.testing.assert_array_equal(parameters(a), parameters(b))


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.9999])
def test_one_step_solves_a_map_that_contracts_alike_everywhere(rate):
    target = torch.tensor([1.0, -2.0, 30.0]).double()

    def sweep(x):
        return target + rate * (x - target)

    start = torch.zeros(3).double()
    torch.testing.assert_close(squarem_step(start, sweep(start), sweep(sweep(start))), target, rtol=1e-6, atol=0)


def test_the_step_is_the_published_formula():
    start, once, twice = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double()
    r, v = once - start, twice - 2 * once + start
    for stretch in (1.0, 20.0):  # lengthens r, leaves v
        moved = [start + k * (stretch - 1) * r for k in range(3)]
        points = [moved[0], moved[1] + r, moved[2] + 2 * r + v]
        a = -stretch * r.norm() / v.norm()
        expected = points[0] - 2 * a * stretch * r + a**2 * v
        found = squarem_step(*points)
        if a > -1:
            assert found is None
        else:
            torch.testing.assert_close(found, expected)
    assert stretch * r.norm() > v.norm()


def test_no_step_where_there_is_none():
    x = torch.ones(2)
    assert squarem_step(x, x, x) is None  # at the limit
    assert squarem_step(x, x + 1, x + 2) is None  # no curvature: the step would be infinite
    assert squarem_step(x, -x / 2, x / 4) is None  # jumps from side to side, and plain sweeps are fast
    assert squarem_step(x, x * math.inf, x) is None


def test_two_plain_sweeps_then_one_from_the_extrapolated_point():
    zero, one = torch.zeros(1), torch.ones(1)
    state = Squarem().with_point(zero).with_point(one)
    assert state.proposal() is None
    state = state.with_point(1.5 * one)
    assert float(state.proposal()) == 2
    assert state.after_proposal(kept=True) == Squarem((), 1, 0)
    assert state.after_proposal(kept=False) == Squarem((), 0, 1)
    assert Squarem.from_state(state.state(), zero.device).proposal() == 2
    assert [float(p) for p in state.with_point(9 * one).points] == [1, 1.5, 9]  # the latest three


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_same_end_in_far_fewer_sweeps_and_never_a_fall(seed):
    data = observations(seed)
    plain, fast = (em(mixture, Guide(), data, accelerate=how, **CAREFUL) for how in (None, "squarem"))
    assert plain.settings["converged"] is fast.settings["converged"] is True
    assert fast.settings["steps_done"] < plain.settings["steps_done"] / 4 > 50
    assert fast.settings["final_loss"] == pytest.approx(plain.settings["final_loss"], abs=1e-8)
    np.testing.assert_allclose(parameters(fast), parameters(plain), atol=1e-3)
    for fit in (plain, fast):
        assert (np.diff(fit.history[0]) <= 1e-10).all()
        assert fit.settings["bound_falls"] == 0
    kept, refused = (fast.settings[f"extrapolations_{what}"] for what in ("kept", "refused"))
    assert kept > 5
    assert (np.diff(fast.history[0]) == 0).sum() >= refused
    assert fast.settings["accelerate"] == "squarem"
    assert "extrapolations_kept" not in plain.settings


def test_the_bound_is_the_likelihood_with_labels_summed_out():
    fit = em(mixture, Guide(), DATA, **QUICK)
    with isolated(0, dtype=torch.float64):
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        loss = elbo.loss(fit.model, fit.guide, y=torch.as_tensor(DATA["y"][1]))
    assert loss == pytest.approx(fit.settings["final_loss"], abs=1e-9)
    assert fit.posterior(DATA, 3)["posterior"]["label"].shape == (1, 3, 300)


@pytest.mark.parametrize("error", [None, NumericalError("no"), torch.linalg.LinAlgError("no")])
def test_an_extrapolation_that_breaks_down_is_undone(error):
    """The guide then goes on from the last plain sweep, as if nothing had been tried but for the count of sweeps."""
    fit = em(mixture, Breaks(lambda step, extrapolated: extrapolated, error), DATA, **QUICK)
    assert fit.settings["extrapolations_kept"] == 0
    assert fit.settings["extrapolations_refused"] == 10
    plain = em(mixture, Guide(), DATA, **{**QUICK, "accelerate": None, "num_steps": 20})
    np.testing.assert_array_equal(np.delete(fit.history[0], np.s_[2::3]), plain.history[0])
    np.testing.assert_array_equal(fit.history[0, 2::3], fit.history[0, 1::3])
    np.testing.assert_array_equal(parameters(fit), parameters(plain))


def test_an_undone_sweep_is_no_sign_of_convergence():
    options = {**QUICK, "num_steps": 300, "window": 1, "tolerance": 1e-7}
    fit = em(mixture, Breaks(lambda step, extrapolated: extrapolated), DATA, **options)
    steps = np.abs(np.diff(fit.history[0])) / 300
    assert (steps[1::3] == 0).all()
    assert fit.settings["converged"] is bool(steps[-1] <= 1e-7)
    assert fit.settings["steps_done"] > 20


def test_a_lower_bound_after_an_extrapolation_is_undone():
    class Overshoots(Guide):
        def set_free_parameters(self, vector):
            super().set_free_parameters(vector + torch.linspace(0, 5, 6))

    fit = em(mixture, Overshoots(), DATA, **{**QUICK, "num_steps": 60})
    assert fit.settings["extrapolations_refused"] > 10
    assert fit.settings["bound_falls"] == 0
    assert (np.diff(fit.history[0]) <= 0).all()


@pytest.mark.parametrize("stop", [1, 4, 8, 9, 10, 11, 26])
def test_stopped_at_any_place_in_a_cycle(tmp_path, stop):
    """Interrupted, resumed from the fit, from its file and from a checkpoint: the same bits as in one go."""
    whole = em(mixture, Guide(), DATA, **QUICK)
    short = em(mixture, Guide(), DATA, **{**QUICK, "num_steps": stop})
    cut = em(mixture, Breaks(lambda step, _: step == stop, KeyboardInterrupt()), DATA, **QUICK)
    assert_same(cut, short)
    assert cut.settings["interrupted"] is True
    assert_same(short.resume(DATA, 30 - stop, progress=False), whole)
    short.save(tmp_path / "fit")
    again = Fit.load(tmp_path / "fit", mixture, Guide()).resume(DATA, 30 - stop, progress=False)
    assert_same(again, whole)
    assert again.settings["extrapolations_kept"] == whole.settings["extrapolations_kept"] > 0
    options = {**QUICK, "checkpoint": tmp_path / "state.pt", "checkpoint_every": 1}
    with pytest.raises(Killed):
        em(mixture, Breaks(lambda step, _: step == stop, Killed()), DATA, **options)
    assert_same(em(mixture, Breaks(lambda step, _: False), DATA, **options), whole)


def test_a_checkpoint_of_a_run_without_acceleration_is_refused(tmp_path):
    options = {**QUICK, "checkpoint": tmp_path / "state.pt", "checkpoint_every": 2}
    with pytest.raises(Killed):
        em(mixture, Breaks(lambda step, _: step == 5, Killed()), DATA, **options)
    with pytest.raises(LoadError, match="checkpoint"):
        em(mixture, Breaks(lambda step, _: False), DATA, **{**options, "accelerate": None})


def test_a_plain_sweep_that_breaks_down_is_an_error():
    with pytest.raises(NumericalError, match="step 11: guide.loc is not finite") as caught:
        em(mixture, Breaks(lambda step, _: step == 10), DATA, **QUICK)
    assert_same(caught.value.fit, em(mixture, Guide(), DATA, **{**QUICK, "num_steps": 10}))
