"""Runs of EM that fail, are interrupted, stop and go on: always whole sweeps, and always the same bits."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from embergraph.inference import Fit, Options, em, snapshot
from embergraph.models.parts.errors import LoadError, NumericalError, SchemaError

Y = np.random.default_rng(0).normal([1.0, 2.0, 3.0, 4.0], 1.0, size=(30, 4))
DATA = {"y": (("cell", "gene"), Y)}
QUICK = {"num_steps": 12, "tolerance": None, "progress": False}


def model(y):
    """Means of the genes with a prior, and noise of one variance for all."""
    noise = pyro.sample("noise", dist.Uniform(0.0, 100.0))
    with pyro.plate("gene", 4, dim=-1):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("cell", len(y), dim=-2):
            pyro.sample("y_obs", dist.Normal(mean, noise**0.5), obs=y)


class Countdown:
    """A number that copies of a guide share."""

    def __init__(self, left):
        self.left = left

    def __deepcopy__(self, memo):
        return self


class Killed(BaseException):
    """What nothing catches."""


class Guide(torch.nn.Module):
    """Independent Normals for the means; after `after` sweeps it spoils a number in mid-sweep and raises `error`.

    `loc` is a parameter, the rest are buffers; `kept` is a view of the data that the update works on in place.
    """

    def __init__(self, after=10**9, error=None, value=math.nan, jitter=0.0):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(4))
        self.register_buffer("precision", torch.ones(4))
        self.register_buffer("noise", torch.tensor(5.0))
        self.register_buffer("kept", torch.zeros(4, 30))
        self.left, self.error, self.value, self.jitter = Countdown(after), error, value, jitter

    def forward(self, y):
        pyro.sample("noise", dist.Delta(self.noise))
        with pyro.plate("gene", 4, dim=-1):
            pyro.sample("mean", dist.Normal(self.loc, self.precision**-0.5))

    def update(self, model, inputs, step):
        y = inputs["y"]
        if step == 0:
            self.kept = y.mT
        self.precision.copy_(0.25 + len(y) / self.noise)
        self.loc.copy_((self.kept @ torch.ones(len(y)).to(y)) / self.noise / self.precision)
        self.left.left -= 1
        if self.left.left < 0:
            self.kept[1:] = self.value
            self.loc[2] = self.value
            if self.error is not None:
                raise self.error
        squares = ((y - self.loc) ** 2 + 1 / self.precision).mean()
        self.noise = squares * torch.exp(self.jitter * torch.randn(()))
        prior = dist.Normal(0.0, 2.0).log_prob(self.loc) - 0.125 / self.precision
        entropy = 0.5 * (2 * math.pi * math.e / self.precision).log()
        likelihood = -0.5 * y.numel() * ((2 * math.pi * self.noise).log() + squares / self.noise)
        return likelihood + (prior + entropy).sum() - math.log(100.0)


def numbers(fit):
    return {name: value.clone() for name, value in fit.guide.state_dict().items()}


def assert_same(a, b):
    np.testing.assert_array_equal(a.history, b.history)
    for name, value in numbers(a).items():
        assert torch.equal(value, b.guide.state_dict()[name]), name


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        ({}, "step 6: guide.kept is not finite; the guide is that of step 5|step 6: guide.loc is not finite"),
        ({"value": math.inf}, "step 6: guide.loc is not finite"),
        ({"error": torch.linalg.LinAlgError("no Cholesky factor")}, "step 6: no Cholesky factor"),
        ({"error": NumericalError("Newton: no descent")}, "step 6: Newton: no descent"),
        ({"error": ZeroDivisionError()}, "step 6: ZeroDivisionError"),
    ],
)
def test_failures_name_step_and_number_and_keep_the_last_good_state(breaks, message):
    with pytest.raises(NumericalError, match=message) as caught:
        em(model, Guide(5, **breaks), DATA, **QUICK)
    fit = caught.value.fit
    assert isinstance(fit, Fit)
    assert_same(fit, em(model, Guide(), DATA, **{**QUICK, "num_steps": 5}))
    assert "step 6" in fit.settings["failures"]["0"]
    assert fit.settings["steps_done"] == 5
    assert np.isfinite(fit.posterior(DATA, 5)["posterior"]["mean"]).all()


def test_a_bound_that_is_not_finite_and_one_that_is_no_number():
    class Returns(Guide):
        def update(self, model, inputs, step):
            return returned[-1]

    returned = [math.inf]
    with pytest.raises(NumericalError, match="step 1: the bound is inf") as caught:
        em(model, Returns(), DATA, **QUICK)
    assert caught.value.fit.settings["steps_done"] == 0
    for value, kind in ((None, "NoneType"), (torch.zeros(3), "Tensor"), ("high", "str")):
        returned.append(value)
        with pytest.raises(SchemaError, match=f"guide.update: found {kind}; wanted a method that returns a number"):
            em(model, Returns(), DATA, **QUICK)


def test_numbers_that_are_made_or_change_their_shape_in_mid_run_are_named():
    class Grows(Guide):
        def update(self, model, inputs, step):
            self.register_buffer(name, torch.zeros(2))
            return 0.0

    name = "noise"
    with pytest.raises(SchemaError, match=r"guide.noise: found torch.float64 of shape \(2,\); wanted torch.float64 of"):
        em(model, Grows(), DATA, **QUICK)
    name = "more"
    with pytest.raises(SchemaError, match=r"guide.more: .* wanted nothing, as it was before"):
        em(model, Grows(), DATA, **QUICK)


def test_infinities_that_were_there_before_may_stay():
    class Knows(Guide):
        def __init__(self):
            super().__init__()
            self.register_buffer("log_odds", torch.tensor([-math.inf, 0.0]))

    assert em(model, Knows(), DATA, **QUICK).settings["steps_done"] == 12


def test_numbers_may_be_made_at_the_first_call(tmp_path):
    class Lazy(Guide):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", None)

        def forward(self, y):
            if self.kept is None:
                self.kept = torch.zeros_like(y.mT)
            super().forward(y)

    fit = em(model, Lazy(), DATA, **QUICK)
    fit.save(tmp_path / "fit")
    assert_same(Fit.load(tmp_path / "fit", model, Lazy()), fit)


def test_interruption_returns_the_last_complete_sweep():
    fit = em(model, Guide(7, KeyboardInterrupt()), DATA, **QUICK)
    assert fit.settings["interrupted"] is True
    assert fit.settings["converged"] is False
    assert_same(fit, em(model, Guide(), DATA, **{**QUICK, "num_steps": 7}))
    assert fit.posterior(DATA, 5)["posterior"].attrs["interrupted"] == 1
    with pytest.raises(KeyboardInterrupt):
        em(model, Guide(0, KeyboardInterrupt()), DATA, **QUICK)


def test_a_snapshot_is_out_of_reach_of_what_is_done_in_place():
    data = torch.arange(6.0).reshape(2, 3)
    module = torch.nn.Sequential(Guide())
    module[0].kept, module[0].noise = data.mT, data[1, 1]
    taken = snapshot.take(module)
    assert module[0].kept.is_contiguous()
    for tensor in snapshot.numbers_of(module).values():
        tensor.fill_(-1.0)
    module[0].precision = None  # as an interrupted update may leave it
    for _ in range(2):
        snapshot.put(module, taken)
        assert module[0].kept.tolist() == [[0, 3], [1, 4], [2, 5]]
        assert module[0].kept.is_contiguous()
        assert module[0].noise == 4
        assert module[0].precision.tolist() == [1] * 4
        assert module[0].loc.tolist() == [0] * 4
        module[0].kept.zero_()
    assert data.flatten().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("death", [2, 3, 7, 11])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path, death):
    """The random numbers of the update go on as well."""
    path = tmp_path / "deep" / "state.pt"
    options = {**QUICK, "checkpoint_every": 3}
    with pytest.raises(Killed):
        em(model, Guide(death, Killed(), jitter=0.1), DATA, checkpoint=path, **options)
    assert path.exists() == (death >= 3)
    again = em(model, Guide(jitter=0.1), DATA, checkpoint=path, **options)
    assert_same(again, em(model, Guide(jitter=0.1), DATA, **options))
    assert not path.exists()
    assert not list(path.parent.glob("*.part"))


def test_an_interrupted_run_keeps_its_checkpoint(tmp_path):
    options = {**QUICK, "checkpoint": tmp_path / "state.pt", "checkpoint_every": 2}
    assert em(model, Guide(7, KeyboardInterrupt()), DATA, **options).settings["steps_done"] == 7
    guide = Guide()
    assert_same(em(model, guide, DATA, **options), em(model, Guide(), DATA, **QUICK))
    assert guide.left.left == 10**9 - 6  # six of the twelve sweeps were in the file


def test_a_run_killed_after_it_settled_does_not_go_on(tmp_path, monkeypatch):
    options = {"num_steps": 100, "progress": False}
    whole = em(model, Guide(), DATA, **options)
    steps = whole.settings["steps_done"]
    assert steps < 100
    path = tmp_path / "state.pt"
    with monkeypatch.context() as patch:
        patch.setattr("embergraph.inference._em.Checkpoint.remove", _die)
        with pytest.raises(Killed):
            em(model, Guide(), DATA, checkpoint=path, checkpoint_every=steps, **options)
    again = em(model, Guide(0, Killed()), DATA, checkpoint=path, checkpoint_every=steps, **options)
    assert_same(again, whole)
    assert again.settings["converged"] is True


def _die(self):
    raise Killed


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"num_steps": 13},
        {"tolerance": 1e-3},
        {"window": 4},
        {"data": {"y": (("cell", "gene"), Y + 1e-9)}},
        {"guide": Guide},
        {"guide": "with one more number"},
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change):
    options = {**QUICK, "checkpoint": tmp_path / "state.pt", "checkpoint_every": 2, "data": DATA}
    with pytest.raises(Killed):
        em(model, guide=Guide(5, Killed()), **options)
    other = Guide()
    other.register_buffer("more", torch.zeros(2))
    if isinstance(change.get("guide"), str):
        change = {"guide": other}
    elif "guide" in change:
        change = {"guide": lambda model: Guide()}
    with pytest.raises(LoadError, match="checkpoint"):
        em(model, **{"guide": Guide(), **options, **change})


def test_resume_equals_a_longer_run(tmp_path):
    short, long = (em(model, Guide(jitter=0.1), DATA, **{**QUICK, "num_steps": n}) for n in (7, 12))
    before = numbers(short)
    assert_same(short.resume(DATA, 5, progress=False), long)
    assert all(torch.equal(value, before[name]) for name, value in numbers(short).items())
    short.save(tmp_path / "fit")
    loaded = Fit.load(tmp_path / "fit", model, Guide(jitter=0.1))
    assert_same(loaded.resume(DATA, 5, progress=False), long)
    with pytest.raises(SchemaError, match="options: found options of svi"):
        short.resume(DATA, 5, options=Options(), progress=False)
    short.training.clear()
    with pytest.raises(SchemaError, match="resume: found a fit without the state of its routine"):
        short.resume(DATA, 5, progress=False)


def test_a_settled_run_that_goes_on_settles_at_once():
    settled = em(model, Guide(), DATA, num_steps=100, progress=False)
    further = settled.resume(DATA, 50, progress=False)
    assert settled.settings["converged"] is further.settings["converged"] is True
    assert further.settings["steps_done"] == settled.settings["steps_done"] + 1


def test_a_resumed_run_can_fail_and_be_interrupted():
    for error in (None, KeyboardInterrupt()):
        guide = Guide(error=error)
        fit = em(model, guide, DATA, **QUICK)
        guide.left.left = 2
        if error is None:
            with pytest.raises(NumericalError, match="step 15: guide.") as caught:
                fit.resume(DATA, 5, progress=False)
            cut = caught.value.fit
        else:
            cut = fit.resume(DATA, 5, progress=False)
            assert cut.settings["interrupted"] is True
        assert_same(cut, em(model, Guide(), DATA, **{**QUICK, "num_steps": 14}))
        guide.left.left = 10**9
        again = cut.resume(DATA, 2, progress=False)
        assert again.settings["failures"] == {}
        assert again.settings["interrupted"] is False
