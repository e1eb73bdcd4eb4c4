"""Updates between the steps of SVI: when they come, what they may change, and that they happen as a whole or not."""

from __future__ import annotations

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from embergraph.inference import Fit, Linear, svi
from embergraph.models.parts.errors import DataError, LoadError, NumericalError, SchemaError
from embergraph.models.schema import Input, Schema

TURN = torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.double)
Y = np.random.default_rng(0).normal(size=(30, 2)) @ [[2.0, 0.3], [0.0, 0.5]] + 1.0
DATA = {"expression": (("cell", "gene"), Y)}
OPTIONS = {"num_steps": 16, "update_every": 4, "batch_size": 10, "learning_rate": 0.05, "progress": False}


class Shared(list):
    """A list that copies share."""

    def __deepcopy__(self, memo):
        return self


class Killed(BaseException):
    """What nothing catches."""


class Model(torch.nn.Module):
    """A shared point in a latent plane, decoded linearly; can be made to die at a run with gradients."""

    schema = Schema({"expression": Input(("cell", "gene"), observed=True)}, site_dims={"z": ("latent",)})

    def __init__(self, dies_after=10**9):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0, 0.2], [-0.3, 1.0]]))
        self.left = Shared([dies_after])

    def forward(self, expression):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        self.left[0] -= z.requires_grad
        if self.left[0] < 0:
            raise Killed
        with pyro.plate("cell", len(expression), dim=-1):
            observed = pyro.subsample(expression, event_dim=1)
            pyro.sample("expression", dist.Normal(z @ self.weight, 1.0).to_event(1), obs=observed)


class Guide(torch.nn.Module):
    """Turns the latent plane: its location and the model's decoder move, the fit stays as it was."""

    def __init__(self, trick=None):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor([0.5, -0.5]))
        self.log_scale = torch.nn.Parameter(torch.full((2,), -1.0))
        self.register_buffer("table", torch.ones(2, 3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("kl_weight", torch.ones(()))
        self.trick, self.seen = trick, Shared()

    def forward(self, expression):
        self.seen.append(float(self.kl_weight))
        scale = (self.log_scale + (self.table @ self.table.T).diagonal() * 1e-3).exp()
        pyro.sample("z", dist.Normal(self.loc, scale).to_event(1))

    def update(self, model, inputs, step):
        if self.trick is not None:
            self.trick(self, model, step)
        self.turn(model)
        self.calls += 1
        self.table = torch.rand(3, 2).T + inputs["expression"].mean() * step  # neither in place nor contiguous

    def turn(self, model):
        turn = TURN.to(self.loc.dtype)
        self.loc.copy_(self.loc @ turn)
        model.weight.copy_(turn.T @ model.weight)


def numbers(fit):
    named = {f"model.{k}": v for k, v in fit.model.state_dict().items()}
    return named | {f"guide.{k}": v for k, v in fit.guide.state_dict().items()}


def assert_same(a, b):
    np.testing.assert_array_equal(a.history, b.history)
    assert a.settings["final_loss"] == b.settings["final_loss"]
    for name, value in numbers(a).items():
        assert torch.equal(value, numbers(b)[name]), name


def test_updates_come_after_every_so_many_steps_with_all_rows_and_without_gradients():
    class Watched(Guide):
        def update(self, model, inputs, step):
            seen.append((step, len(inputs["expression"]), torch.is_grad_enabled(), list(inputs)))
            super().update(model, inputs, step)

    seen = Shared()
    mine = Watched(), Model()
    before = copy.deepcopy([dict(m.state_dict()) for m in mine])
    fit = svi(mine[1], mine[0], DATA, **{**OPTIONS, "num_steps": 14})
    assert seen == [(step, 30, False, ["expression"]) for step in (4, 8, 12)]
    assert fit.guide.calls == 3
    for module, held in zip(mine, before, strict=True):  # the user's objects are as before
        assert all(torch.equal(value, held[name]) for name, value in module.state_dict().items())
    assert fit.settings["update_every"] == 4


def test_a_turn_alone_leaves_the_path_of_the_loss_as_it_was():
    """Plain gradient steps commute with a rotation of the latents, which Adam's would not."""

    class Turns(Guide):
        def update(self, model, inputs, step):
            self.turn(model)

    def path(every):
        guide = Turns()
        guide.log_scale.data.fill_(-20.0)
        options = {**OPTIONS, "update_every": every, "optimizer": torch.optim.SGD}
        rates = {"*log_scale": 0.0, "*": 1e-3}
        return svi(Model(), guide, DATA, **{**options, "learning_rate": rates}).history.values

    np.testing.assert_allclose(path(4), path(None), rtol=1e-7)


def test_parameters_that_moved_start_afresh_in_the_optimiser():
    fit = svi(Model(), Guide(), DATA, **{**OPTIONS, "num_steps": 8})
    places = {name: i for i, name in enumerate(fit.training["parameters"])}
    state = fit.training["optimizer"]["state"]
    assert set(places) == {"model.weight", "guide.loc", "guide.log_scale"}
    assert set(state) == {places["guide.log_scale"]}  # the update wrote no other values into this one
    assert state[places["guide.log_scale"]]["step"] == 8
    before = numbers(fit)
    after = numbers(fit.resume(DATA, 1, progress=False))
    for name in ("model.weight", "guide.loc"):  # Adam's first step: the rate, whatever the gradient
        torch.testing.assert_close((after[name] - before[name]).abs(), torch.full_like(before[name], 0.05))


def set_to(what, value):
    def trick(guide, model, step):
        if step == 8:
            target = model.weight if what == "weight" else getattr(guide, what)
            target[..., 0] = value

    return trick


def raises(error):
    def trick(guide, model, step):
        if step == 8:
            guide.turn(model)
            guide.table[0] = 7.0
            raise error

    return trick


@pytest.mark.parametrize(
    ("trick", "message"),
    [
        (raises(ZeroDivisionError("by zero")), "the update: by zero"),
        (raises(torch.linalg.LinAlgError("singular")), "the update: singular"),
        (raises(np.linalg.LinAlgError()), "the update: LinAlgError"),
        (raises(NumericalError("no root")), "the update: no root"),
        (set_to("weight", np.nan), "the update: model.weight is not finite"),
        (set_to("loc", np.inf), "the update: guide.loc is not finite"),
    ],
)
def test_breakdowns_are_named_and_the_last_good_state_is_back(trick, message):
    with pytest.raises(NumericalError, match=f"step 8: {message}; parameters are those of step 8") as caught:
        svi(Model(), Guide(trick), DATA, **OPTIONS)
    fit = caught.value.fit
    good = svi(Model(), Guide(), DATA, **{**OPTIONS, "num_steps": 8, "update_every": 4})
    np.testing.assert_array_equal(fit.history, good.history)
    seven = numbers(svi(Model(), Guide(), DATA, **{**OPTIONS, "num_steps": 7}))  # where the eighth loss was computed
    assert all(torch.equal(value, seven[name]) for name, value in numbers(fit).items())
    assert fit.guide.calls == 1
    assert "step 8: the update" in fit.settings["failures"]["0"]
    assert np.isfinite(fit.posterior(DATA, 5)["posterior"]["z"]).all()


def test_an_update_that_no_loss_confirms_is_taken_back(tmp_path):
    """Finite numbers, but the next loss is not: parameters and buffers are those before the update, resumed or not."""

    def trick(guide, model, step):
        if step == 8:
            guide.log_scale.fill_(1e4)

    options = {**OPTIONS, "checkpoint_every": 8}
    with pytest.raises(NumericalError, match="step 9: the loss is (nan|inf)") as whole:
        svi(Model(), Guide(trick), DATA, **options)
    seven = numbers(svi(Model(), Guide(), DATA, **{**OPTIONS, "num_steps": 7}))
    found = numbers(whole.value.fit)
    assert all(torch.equal(value, seven[name]) for name, value in found.items())
    with pytest.raises(Killed):
        svi(Model(dies_after=8), Guide(trick), DATA, checkpoint=tmp_path / "s", **options)
    with pytest.raises(NumericalError, match="step 9") as resumed:
        svi(Model(), Guide(trick), DATA, checkpoint=tmp_path / "s", **options)
    assert all(torch.equal(value, found[name]) for name, value in numbers(resumed.value.fit).items())
    last = svi(Model(), Guide(trick), DATA, **{**options, "num_steps": 8})  # the same after the very last step
    assert np.isfinite(last.settings["final_loss"])
    assert all(torch.equal(value, found[name]) for name, value in numbers(last).items())


@pytest.mark.parametrize("death", [3, 5, 10, 15])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path, death):
    options = {**OPTIONS, "schedules": {"guide.kl_weight": Linear(0.0, 1.0, 0.5)}}
    whole = svi(Model(), Guide(), DATA, **options)
    with pytest.raises(Killed):
        svi(Model(dies_after=death), Guide(), DATA, checkpoint=tmp_path / "s", checkpoint_every=2, **options)
    resumed = svi(Model(), Guide(), DATA, checkpoint=tmp_path / "s", checkpoint_every=2, **options)
    assert_same(resumed, whole)
    with pytest.raises(Killed):
        svi(Model(dies_after=death), Guide(), DATA, checkpoint=tmp_path / "s", checkpoint_every=2, **options)
    with pytest.raises(LoadError, match="checkpoint"):
        svi(Model(), Guide(), DATA, checkpoint=tmp_path / "s", checkpoint_every=2, **{**options, "update_every": 5})


@pytest.mark.parametrize("steps", [8, 10])
def test_resume_equals_a_longer_run_also_from_disk(tmp_path, steps):
    long = svi(Model(), Guide(), DATA, **OPTIONS)
    short = svi(Model(), Guide(), DATA, **{**OPTIONS, "num_steps": steps})
    assert_same(short.resume(DATA, 16 - steps, progress=False), long)
    short.save(tmp_path / "fit")
    assert_same(Fit.load(tmp_path / "fit", Model(), Guide()).resume(DATA, 16 - steps, progress=False), long)


def test_ctrl_c_inside_leaves_the_state_before_and_the_update_to_come():
    presses = Shared([True])

    def trick(guide, model, step):
        if step == 8 and presses[0]:
            presses[0] = False
            guide.turn(model)
            guide.table += 1
            torch.rand(3)
            raise KeyboardInterrupt

    cut = svi(Model(), Guide(trick), DATA, **OPTIONS)
    assert cut.settings["interrupted"]
    assert cut.settings["steps_done"] == 8
    assert cut.guide.calls == 1
    whole = svi(Model(), Guide(), DATA, **{**OPTIONS, "num_steps": 8})
    torch.testing.assert_close(numbers(cut)["guide.loc"] @ TURN, numbers(whole)["guide.loc"])
    assert_same(cut.resume(DATA, 8, progress=False), svi(Model(), Guide(), DATA, **OPTIONS))


def test_what_cannot_be_updated_is_refused_before_work():
    model = Model()
    seen = []
    model.register_forward_hook(lambda *args: seen.append(1))
    for guide in (AutoNormal, lambda expression: None):
        with pytest.raises(SchemaError, match=r"update_every: found the guide \S+ without update; wanted a torch.nn.M"):
            svi(model, guide, DATA, **OPTIONS)
    assert not seen
    for wrong in (0, 2.5, True):
        with pytest.raises(DataError, match="update_every: found"):
            svi(model, Guide(), DATA, **{**OPTIONS, "update_every": wrong})


def test_numbers_keep_their_shapes_and_parameters_their_places():
    def grows(guide, model, step):
        guide.kl_weight = torch.ones(3)

    def replaces(guide, model, step):
        guide.log_scale = torch.nn.Parameter(torch.zeros(2, dtype=torch.double))

    with pytest.raises(SchemaError, match=r"guide.kl_weight: found torch.float\d+ of shape \(3,\); wanted"):
        svi(Model(), Guide(grows), DATA, **OPTIONS)
    with pytest.raises(SchemaError, match="guide.log_scale: found another parameter in its place"):
        svi(Model(), Guide(replaces), DATA, **OPTIONS)


def test_schedules_reach_buffers_of_the_guide_also_after_they_were_replaced():
    def replaces(guide, model, step):
        guide.kl_weight = torch.tensor(9.0, dtype=torch.double)

    guide = Guide(replaces)
    options = {**OPTIONS, "num_steps": 8, "batch_size": None}
    fit = svi(Model(), guide, DATA, schedules={"guide.kl_weight": Linear(0.0, 1.0, 0.5)}, **options)
    steps = guide.seen[-24:-16]  # 16 evaluations follow
    assert steps == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert fit.guide.kl_weight == 1
    with pytest.raises(DataError, match=r"found \['guide.kl'\]; wanted .*or of the guide, one of \['guide.calls', "):
        svi(Model(), Guide(), DATA, schedules={"guide.kl": Linear(0.0, 1.0)}, **OPTIONS)
    with pytest.raises(DataError, match=r"found \['kl_weight'\]"):
        svi(Model(), Guide(), DATA, schedules={"kl_weight": Linear(0.0, 1.0)}, **OPTIONS)
