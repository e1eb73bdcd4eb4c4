"""Runs that stop and go on: checkpoints, `Fit.resume`, convergence, rates and schedules."""

from __future__ import annotations

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal

from embergraph.inference import Cosine, Geometric, Linear, Options, WarmCosine, svi
from embergraph.models.parts.errors import DataError, LoadError, NumericalError, SchemaError

Y = np.random.default_rng(0).normal(1.0, 1.0, 30)
DATA = {"y": ("cell", Y)}
OPTIONS = {"num_steps": 40, "num_restarts": 3, "batch_size": 10, "progress": False, "checkpoint_every": 7}


class Killed(BaseException):
    """What nothing catches."""


class Countdown:
    """A number that copies of a model share."""

    def __init__(self, left):
        self.left = left

    def __deepcopy__(self, memo):
        return self

    def over(self):
        self.left -= 1
        return self.left < 0


class Weighted(torch.nn.Module):
    """A model with a buffer that a schedule may set; counts its runs with gradients and dies when told to."""

    def __init__(self, dies_after=10**9, breaks_after=10**9):
        super().__init__()
        self.register_buffer("weight", torch.tensor(1.0))
        self.dies, self.breaks, self.seen = Countdown(dies_after), Countdown(breaks_after), []

    def forward(self, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        broken = False
        if mean.requires_grad:
            self.seen.append(float(self.weight))
            if self.dies.over():
                raise Killed
            broken = self.breaks.over()
        pyro.factor("pull", -self.weight * mean**2 * (math.nan if broken else 1.0))
        with pyro.plate("cell", len(y)):
            pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=pyro.subsample(y, event_dim=0))


def guide(y):
    loc = pyro.param("loc", torch.zeros(()))
    scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


def assert_same(a, b):
    np.testing.assert_array_equal(a.history, b.history)
    assert a.settings["final_losses"] == b.settings["final_losses"]
    for name, value in a.store["params"].items():
        assert torch.equal(value, b.store["params"][name])
    draws = [f.posterior(DATA, 5, prior=False, predictive=False)["posterior"]["mean"].values for f in (a, b)]
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("death", [3, 30, 65, 119])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path, death):
    """In the first, second and third restart; optimiser, random rows and schedule all go on from the file."""
    options = {**OPTIONS, "schedules": {"weight": Geometric(0.1, 10.0), "learning_rate": Cosine()}}
    whole = svi(Weighted(), AutoNormal, DATA, **options)
    path = tmp_path / "deep" / "state.pt"
    with pytest.raises(Killed):
        svi(Weighted(dies_after=death), AutoNormal, DATA, checkpoint=path, **options)
    assert path.exists() == (death > 7)
    assert_same(svi(Weighted(), AutoNormal, DATA, checkpoint=path, **options), whole)
    assert not path.exists()
    assert not list(path.parent.glob("*.part"))


def test_an_interrupted_run_keeps_its_checkpoint_and_goes_on(tmp_path):
    def after(done):
        if calls and done >= 0.5:
            calls.clear()
            raise KeyboardInterrupt
        return 1.0

    calls = [1]
    options = {**OPTIONS, "num_restarts": 1, "checkpoint": tmp_path / "state.pt"}
    fit = svi(Weighted(), guide, DATA, schedules={"learning_rate": after}, **options)
    assert fit.settings["interrupted"]
    assert fit.settings["steps_done"] == 20
    assert (tmp_path / "state.pt").exists()
    again = svi(Weighted(), guide, DATA, schedules={"learning_rate": after}, **options)
    options.pop("checkpoint")
    assert_same(again, svi(Weighted(), guide, DATA, schedules={"learning_rate": after}, **options))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"learning_rate": 0.5},
        {"num_steps": 41},
        {"batch_size": 9},
        {"clip_norm": 1.0},
        {"optimizer": torch.optim.SGD},
        {"schedules": {"learning_rate": Cosine()}},
        {"data": {"y": ("cell", Y + 1e-9)}},
        {"guide": guide},
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change):
    options = {**OPTIONS, "checkpoint": tmp_path / "state.pt", "data": DATA, "guide": AutoNormal}
    with pytest.raises(Killed):
        svi(Weighted(dies_after=10), **options)
    with pytest.raises(LoadError, match="checkpoint"):
        svi(Weighted(), **{**options, **change})


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "state.pt"
    for content in (b"text", b""):
        path.write_bytes(content)
        with pytest.raises(LoadError, match="not a checkpoint"):
            svi(Weighted(), AutoNormal, DATA, checkpoint=path, **OPTIONS)
    torch.save({"format": 99, "settings": "", "state": {}}, path)
    with pytest.raises(LoadError, match="found format 99"):
        svi(Weighted(), AutoNormal, DATA, checkpoint=path, **OPTIONS)


def test_a_resumed_run_goes_back_as_far_as_an_uninterrupted_one(tmp_path):
    """A step that fails right after the checkpoint restores the parameters of the step before it."""
    options = {**OPTIONS, "num_restarts": 1, "batch_size": None}
    with pytest.raises(NumericalError) as whole:
        svi(Weighted(breaks_after=14), guide, DATA, **options)
    with pytest.raises(Killed):
        svi(Weighted(dies_after=14), guide, DATA, checkpoint=tmp_path / "s", **options)
    with pytest.raises(NumericalError) as resumed:
        svi(Weighted(breaks_after=0), guide, DATA, checkpoint=tmp_path / "s", **options)
    assert str(resumed.value) == str(whole.value)
    for name, value in whole.value.fit.store["params"].items():
        assert torch.equal(resumed.value.fit.store["params"][name], value)


@pytest.mark.parametrize("chosen", [guide, AutoNormal])
def test_resume_after_n_steps_equals_a_longer_run(chosen):
    options = {**OPTIONS, "learning_rate": {"*loc*": 0.05, "*": 0.01}, "clip_norm": 5.0}
    short, long = (svi(Weighted(), chosen, DATA, **{**options, "num_steps": n}) for n in (25, 40))
    before = short.training["optimizer"]["state"][0]["exp_avg"].clone()
    first, second = short.resume(DATA, 15, progress=False), short.resume(DATA, 15, progress=False)
    place = first.settings["chosen_restart"]
    np.testing.assert_array_equal(first.history[place], long.history[place])
    np.testing.assert_array_equal(first.history.values[:, :25], short.history)  # other restarts' histories stay
    assert first.settings["final_losses"][place] == first.settings["final_loss"]
    if place == long.settings["chosen_restart"]:
        assert_same(first, second)
        for name, value in first.store["params"].items():
            assert torch.equal(value, long.store["params"][name])
    assert short.history.shape == (3, 25)  # the fit that was resumed is as before
    assert torch.equal(short.training["optimizer"]["state"][0]["exp_avg"], before)
    assert first.resume(DATA, 5, progress=False).settings["steps_done"] == 45
    assert "loss_drift" in first.report(DATA, num_samples=100)


def test_resume_needs_an_optimiser_and_its_options():
    fit = svi(Weighted(), guide, DATA, optimizer=torch.optim.SGD, learning_rate=1e-3, num_steps=3, progress=False)
    fit.training.pop("options")  # as after `load`
    with pytest.raises(SchemaError, match="wanted options=Options"):
        fit.resume(DATA, 2, progress=False)
    again = fit.resume(DATA, 2, options=Options(optimizer=torch.optim.SGD, learning_rate=1e-3), progress=False)
    assert again.settings["steps_done"] == 5
    fit.training.clear()
    with pytest.raises(SchemaError, match="without an optimiser"):
        fit.resume(DATA, 2, progress=False)


def test_a_resumed_run_can_be_interrupted_and_can_fail():
    fit = svi(Weighted(breaks_after=8), guide, DATA, num_steps=5, progress=False)
    with pytest.raises(NumericalError, match="step 9: the loss is nan") as caught:
        fit.resume(DATA, 10, progress=False)
    assert caught.value.fit.settings["steps_done"] == 8
    assert np.isfinite(caught.value.fit.posterior(DATA, 5)["posterior"]["mean"]).all()

    def stop(done):
        if done > 0.7:
            raise KeyboardInterrupt
        return 1.0

    fit = svi(Weighted(), guide, DATA, num_steps=5, progress=False)
    cut = fit.resume(DATA, 5, options=Options(schedules={"learning_rate": stop}), progress=False)
    assert cut.settings["interrupted"] is True
    assert cut.settings["steps_done"] == 8


def test_convergence_rule_stops_at_the_end_of_a_window():
    options = {"num_steps": 2000, "learning_rate": 0.05, "window": 50, "progress": False}
    fit = svi(Weighted(), guide, DATA, tolerance=1e-3, **options)
    steps = fit.settings["steps_done"]
    assert fit.settings["converged"] is True
    assert steps % 50 == 0
    assert 100 <= steps < 1000
    means = fit.history.values[0].reshape(-1, 50).mean(1)
    gains = -np.diff(means) / np.maximum(1, np.abs(means[1:]))
    assert gains[-1] < 1e-3
    assert (gains[:-1] >= 1e-3).all()
    assert fit.resume(DATA, 3, progress=False).settings["converged"] is False


def test_rates_by_pattern_first_match_counts():
    """Adam's first step moves every parameter by its own rate."""
    rates = {"lo*": 0.3, "loc": 0.1, "*": 0.001}
    fit = svi(Weighted(), guide, DATA, num_steps=1, learning_rate=rates, progress=False)
    moved = {name: abs(float(value.detach())) for name, value in fit.store["params"].items()}
    assert moved == pytest.approx({"loc": 0.3, "scale": 0.001}, rel=1e-4)


def test_schedules_reach_buffer_and_rate():
    model = Weighted()
    schedules = {"weight": Geometric(1.0, 16.0, 0.5), "learning_rate": lambda done: 1.0 if done < 0.5 else 0.0}
    fit = svi(model, guide, DATA, num_steps=8, schedules=schedules, progress=False)
    assert fit.model.seen == pytest.approx([1, 1, 1, 1, 1, 2, 4, 8])
    assert fit.model.weight == 16
    assert model.weight == 1
    half = svi(model, guide, DATA, num_steps=4, schedules={"weight": Geometric(1, 1)}, progress=False)
    for name, value in half.store["params"].items():
        assert torch.equal(fit.store["params"][name], value)  # a rate of zero: nothing moved after step 4


def test_values_of_the_schedules():
    geometric = Geometric(0.05, 1e3, 0.4)
    assert [geometric(d) for d in (0, 0.4, 0.7, 1)] == pytest.approx([0.05, 0.05, math.sqrt(50), 1e3])
    assert [Cosine(2.0, 1.0)(d) for d in (0, 0.5, 1, 1.5)] == pytest.approx([2, 1.5, 1, 1])
    assert [Linear(1.0, 3.0, 0.4)(d) for d in (0, 0.2, 0.4, 1)] == pytest.approx([1, 2, 3, 3])
    assert [Linear(0.0, 1.0)(d) for d in (0, 0.25, 1)] == pytest.approx([0, 0.25, 1])
    warm = [WarmCosine(0.1, 0.5, 0.2)(d) for d in (0, 0.05, 0.1, 0.5, 0.75, 1)]
    assert warm == pytest.approx([0, 0.5, 1, 1, 0.6, 0.2])
    assert WarmCosine(0.0)(0) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0, 1, 0), "until: found 0"),
        (lambda: Linear(0, 1, 1.5), "until: found 1.5"),
        (lambda: WarmCosine(0.6, 0.5), "warm, hold: found 0.6 and 0.5"),
        (lambda: WarmCosine(0.1, 1.0), "warm, hold: found 0.1 and 1.0"),
    ],
)
def test_schedules_out_of_range(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_clip_norm_bounds_the_step_of_all_parameters_together():
    options = {"optimizer": torch.optim.SGD, "learning_rate": 1.0, "num_steps": 1, "progress": False}
    steps = {}
    for norm in (None, 0.5):
        fit = svi(Weighted(), guide, DATA, clip_norm=norm, **options)
        steps[norm] = torch.stack([value.detach() for value in fit.store["params"].values()])
    assert steps[None].norm() > 5
    torch.testing.assert_close(steps[0.5], 0.5 * steps[None] / steps[None].norm(), rtol=1e-4, atol=0)


def test_unknown_buffers_are_named():
    with pytest.raises(DataError, match=r"found \['wieght'\]; wanted buffers of the model, one of \['weight'\]"):
        svi(Weighted(), guide, DATA, schedules={"wieght": Cosine()}, num_steps=1, progress=False)


def test_a_partial_optimiser():
    adam = functools.partial(torch.optim.Adam, betas=(0.5, 0.9))
    fit = svi(Weighted(), guide, DATA, optimizer=adam, num_steps=2, progress=False)
    assert fit.training["optimizer"]["param_groups"][0]["betas"] == (0.5, 0.9)
    assert fit.settings["optimizer"] == "Adam({'betas': (0.5, 0.9)})"
