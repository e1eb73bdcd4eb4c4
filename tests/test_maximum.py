"""MAP points from many starts at once."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from embergraph.inference import Geometric
from embergraph.inference.density import LogDensity
from embergraph.inference.maximum import _Climber, maximize
from embergraph.models.parts.errors import DataError, NumericalError, SchemaError

DOUBLE = {"dtype": torch.double}
X = torch.linspace(-1, 1, 30, **DOUBLE)
Y = 2 * X + torch.sin(20 * X)


class Model(torch.nn.Module):
    """A line with unit noise, and a pull of scheduled weight towards a slope of zero; NaN where the slope passes 5."""

    def __init__(self, wall=5.0):
        super().__init__()
        self.wall, self.seen = wall, []
        self.register_buffer("weight", torch.tensor(0.0, **DOUBLE))

    def forward(self):
        self.seen.append(float(self.weight))
        zero = torch.zeros((), **DOUBLE)
        slope = pyro.sample("slope", dist.Normal(zero, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(zero, 0.01))
        pyro.factor("pull", -self.weight * slope**2)
        pyro.factor("wall", torch.where(slope < self.wall, 0 * slope, torch.full_like(slope, math.nan)))
        with pyro.plate("cell", 30, dim=-1):
            x, y = pyro.subsample(X, event_dim=0), pyro.subsample(Y, event_dim=0)
            pyro.sample("y_obs", dist.Normal(slope * x, scale), obs=y)


STARTS = torch.tensor([[-3.0, 0.3], [0.0, 0.0], [4.0, -0.3]], **DOUBLE)
OPTIONS = {"num_steps": 250, "learning_rate": 0.1, "progress": False}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def mode(weight=0.0):
    """The mode by Newton's method on the same density."""
    model = Model()
    model.weight.fill_(weight)
    density, point = LogDensity(model, {}), torch.tensor([[1.5, 0.1]], **DOUBLE)
    for _ in range(20):
        gradient = torch.autograd.functional.jacobian(lambda v: density(v, jacobian=False).sum(), point)[0]
        hessian = torch.autograd.functional.hessian(lambda v: density(v[None], jacobian=False).sum(), point[0])
        point = point - torch.linalg.solve(hessian, gradient)
    return point[0]


def test_every_restart_finds_the_mode():
    density = LogDensity(Model(), {})
    found = maximize(density, STARTS, **OPTIONS)
    torch.testing.assert_close(found.points, mode().expand(3, 2), atol=2e-3, rtol=0)
    assert found.history.shape == (250, 3)
    torch.testing.assert_close(found.log_density, density(found.points, jacobian=False))
    torch.testing.assert_close(found.history[0], density(STARTS, jacobian=False))
    assert found.best == int(found.log_density.argmax())
    assert not found.interrupted
    assert torch.equal(STARTS[2], torch.tensor([4.0, -0.3], **DOUBLE))


def test_schedules_are_at_their_end_for_the_final_density():
    model = Model()
    schedules = {"weight": lambda done: 16.0 if done >= 0.2 else Geometric(1.0, 16.0, 0.1)(done)}
    found = maximize(LogDensity(model, {}), STARTS, schedules=schedules, **OPTIONS)
    assert model.seen[1:27] == [1.0] * 26
    assert 1.0 < model.seen[40] < 16.0
    assert model.seen[-1] == 16.0
    torch.testing.assert_close(found.points[:, 0], mode(16.0)[0].expand(3), atol=5e-3, rtol=0)
    with pytest.raises(DataError, match="wanted buffers of the model"):
        maximize(LogDensity(model, {}), STARTS, schedules={"wait": Geometric(1, 2)}, **OPTIONS)


def test_rates_by_site():
    """Adam's first step is the rate, whatever the gradient."""
    density = LogDensity(Model(), {})
    for rates, steps in (({"slope": 0.3, "": 0.1}, [0.3, 0.1]), ({"slope": 0.2, "scale": 0.0}, [0.2, 0.0])):
        found = maximize(density, STARTS, num_steps=1, learning_rate=rates, progress=False)
        torch.testing.assert_close((found.points - STARTS).abs(), torch.tensor([steps] * 3, **DOUBLE))
    for rates in ({"slope": 0.1}, {"slop": 0.1, "": 0.1}):
        with pytest.raises(DataError, match=r"learning_rate: found (none for site 'scale'|sites .'slop')"):
            maximize(density, STARTS, num_steps=1, learning_rate=rates, progress=False)
    with pytest.raises(DataError, match=r"clip: found sites \['slop'\]"):
        maximize(density, STARTS, num_steps=1, clip={"slop": 1.0}, progress=False)


def test_clip_bounds_the_gradient_of_each_restart_by_itself():
    density = LogDensity(Model(), {})
    climber = _Climber(density, STARTS, 0.1, 1e-4, {"slope": 1.0}, 30.0)
    climber.step(density(climber.points(), jacobian=False), 0.0)
    plain = torch.autograd.functional.jacobian(lambda v: density(v, jacobian=False).sum() / 30, STARTS)
    momentum = torch.cat([climber.optimizer.state[leaf]["exp_avg"] for leaf in climber.leaves.values()], -1)
    wanted = -torch.stack([plain[:, 0].clamp(-1.0, 1.0), plain[:, 1]], -1)
    assert (plain[:, 0].abs() > 1.0).tolist() == [True, False, True]
    torch.testing.assert_close(momentum, 0.1 * wanted)


def test_batches_take_fresh_rows_and_the_factor():
    density = LogDensity(Model(), {})
    found = maximize(density, STARTS[:1], num_steps=400, learning_rate=0.0, batch=("cell", 10), progress=False)
    full = float(density(STARTS[:1], jacobian=False))
    spread = float(found.history.std())
    assert spread > 0.1
    assert abs(float(found.history.mean()) - full) < 4 * spread / 20
    assert float(found.log_density) == pytest.approx(full)  # the final density is that of all rows
    same = maximize(density, STARTS, batch=("cell", 30), **OPTIONS)
    torch.testing.assert_close(same.points, maximize(density, STARTS, **OPTIONS).points)
    with pytest.raises(SchemaError, match=r"batch: found plates \['cell'\] in the model; wanted one named 'row'"):
        maximize(density, STARTS, batch=("row", 10), **OPTIONS)


def test_a_restart_that_leaves_the_domain_goes_back_and_the_others_do_not_notice():
    """The wall stands before the mode: the restart ends close to it, and inside."""
    alone = maximize(LogDensity(Model(wall=1e9), {}), STARTS[:1], **OPTIONS)
    assert float(mode()[0]) > 1.2
    walled = maximize(LogDensity(Model(wall=1.2), {}), STARTS[:2], **{**OPTIONS, "num_steps": 120})
    assert not torch.isfinite(walled.history).all()
    assert torch.isfinite(walled.log_density).all()
    assert ((walled.points[:, 0] > 1.1) & (walled.points[:, 0] < 1.2)).all()
    both = maximize(LogDensity(Model(), {}), torch.cat([STARTS[:1], STARTS[:1] + 10.0]), **OPTIONS)
    torch.testing.assert_close(both.points[0], alone.points[0])
    assert float(both.log_density[1]) == -math.inf  # it was never inside
    assert both.best == 0


def test_going_back_stops_the_momentum_of_that_restart_alone():
    density = LogDensity(Model(wall=1.0), {})
    climber = _Climber(density, torch.tensor([[0.5, 0.0], [0.9, 0.0]], **DOUBLE), 0.2, 1e-4, {}, 1.0)
    for _ in range(2):
        climber.step(density(climber.points(), jacobian=False), 0.0)
    momentum = climber.optimizer.state[climber.leaves["slope"]]["exp_avg"].squeeze()
    assert momentum[0] != 0
    assert momentum[1] == 0
    assert climber.damping.squeeze().tolist() == [1.0, 0.5]
    assert climber.leaves["slope"].squeeze().tolist()[1] == 0.9


def test_a_last_step_out_of_the_domain_is_taken_back():
    start = torch.tensor([[1.15, 0.0]], **DOUBLE)
    found = maximize(LogDensity(Model(wall=1.2), {}), start, num_steps=1, learning_rate=0.1, progress=False)
    assert torch.equal(found.points, start)
    assert torch.isfinite(found.log_density).all()


class Kink(torch.autograd.Function):
    """Zero, with a derivative that is NaN above 1/2."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(ctx.saved_tensors[0] > 0.5, math.nan, 0.0) * gradient


def test_a_gradient_that_is_not_finite_counts_as_outside():
    def kink():
        x = pyro.sample("x", dist.Normal(torch.zeros((), **DOUBLE), 1.0))
        pyro.factor("kink", Kink.apply(x))

    start = torch.tensor([[0.9], [0.3]], **DOUBLE)
    found = maximize(LogDensity(kink, {}), start, num_steps=100, learning_rate=0.1, progress=False)
    assert float(found.points[0]) == 0.9
    assert abs(float(found.points[1])) < 1e-2


def test_no_finite_end_is_an_error():
    with pytest.raises(NumericalError, match="mine: no restart ended at a finite log density after 3 steps"):
        maximize(LogDensity(Model(), {}), STARTS + 10, num_steps=3, label="mine", progress=False)


def test_interruption():
    model = Model()
    density = LogDensity(model, {})

    def stop(done):
        if len(model.seen) > limit:
            raise KeyboardInterrupt
        return 0.0

    limit = len(model.seen) + 10
    found = maximize(density, STARTS, schedules={"weight": lambda d: stop(d) if d < 1 else 0.0}, **OPTIONS)
    assert found.interrupted
    assert len(found.history) == 11
    assert (found.log_density > found.history[0]).all()
    with pytest.raises(KeyboardInterrupt):
        maximize(density, STARTS, schedules={"weight": lambda d: stop(d) if d < 1 else 0.0}, **OPTIONS)
