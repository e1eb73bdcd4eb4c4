"""Maxima by L-BFGS: known answers, restarts that do not touch each other, and bad starts."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from embergraph.inference.density import LogDensity
from embergraph.inference.quasi_newton import ascend
from embergraph.models.parts.errors import NumericalError

torch_double = {"dtype": torch.double}
PRECISION = torch.tensor([[4.0, 1.5], [1.5, 1.0]], **torch_double)
MEAN = torch.tensor([1.0, -2.0], **torch_double)


def quadratic() -> None:
    pyro.sample("u", dist.MultivariateNormal(MEAN, precision_matrix=PRECISION))


def rosenbrock() -> None:
    wide = dist.Normal(torch.zeros((), **torch_double), 100.0)
    x, y = pyro.sample("x", wide), pyro.sample("y", wide)
    pyro.factor("valley", -((1 - x) ** 2) - 100 * (y - x**2) ** 2 + x**2 / 2e4 + y**2 / 2e4)


def wall() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros((), **torch_double), 1.0))
    pyro.factor("wall", (1.0 - x).log())  # NaN beyond 1


@pytest.fixture(autouse=True)
def _no_validation() -> object:
    with pyro.validation_enabled(False):
        yield


def test_mode_of_a_normal() -> None:
    density = LogDensity(quadratic, {})
    starts = torch.tensor([[5.0, 5.0], [-300.0, 40.0]], **torch_double)
    found = ascend(density, starts, tolerance=1e-12, progress=False)
    torch.testing.assert_close(found.points, MEAN.expand(2, 2), atol=1e-4, rtol=0)
    assert len(found.history) < 30


def test_a_curved_valley() -> None:
    density = LogDensity(rosenbrock, {})
    found = ascend(density, torch.tensor([[-1.2, 1.0]], **torch_double), tolerance=1e-14, progress=False)
    torch.testing.assert_close(found.points, torch.ones(1, 2, **torch_double), atol=1e-3, rtol=0)
    assert (found.history.diff(dim=0) >= 0).all()


def test_restarts_do_not_touch_each_other() -> None:
    density = LogDensity(rosenbrock, {})
    starts = torch.tensor([[-1.2, 1.0], [2.0, -3.0], [0.5, 0.1]], **torch_double)
    together = ascend(density, starts, num_steps=15, tolerance=0.0, progress=False)
    for i in range(3):
        alone = ascend(density, starts[i : i + 1], num_steps=15, tolerance=0.0, progress=False)
        torch.testing.assert_close(together.points[i], alone.points[0], rtol=1e-6, atol=1e-8)


def test_held_sites_stay() -> None:
    density = LogDensity(rosenbrock, {})
    found = ascend(density, torch.tensor([[2.0, 0.0]], **torch_double), held=["x", "nothing"], progress=False)
    assert float(found.points[0, 0]) == 2.0
    assert float(found.points[0, 1]) == pytest.approx(4.0, abs=1e-3)


def test_it_stays_where_the_density_is_finite() -> None:
    density = LogDensity(wall, {})
    found = ascend(density, torch.tensor([[0.99], [3.0]], **torch_double), tolerance=1e-12, progress=False)
    best = 0.5 - 5**0.5 / 2  # of -x^2 / 2 + log(1 - x)
    assert float(found.points[0]) == pytest.approx(best, abs=1e-4)
    assert found.log_density[1] == -torch.inf
    assert found.best == 0
    with pytest.raises(NumericalError, match="finite"):
        ascend(density, torch.tensor([[3.0]], **torch_double), progress=False)
