"""The objective on all of the data: computed in parts of bounded size, weighted so that it is that of the whole."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from embergraph.inference import svi
from embergraph.inference.evaluation import mean_loss
from embergraph.inference.inputs import as_dataset, to_inputs
from embergraph.inference.messengers import Supply
from embergraph.inference.options import Options
from embergraph.inference.run import Run
from embergraph.models.parts.errors import SchemaError
from embergraph.models.schema import Input, Schema

CPU = torch.device("cpu")


class Shared(list):
    """A list that copies of a model share."""

    def __deepcopy__(self, memo):
        return self


class Shifts(torch.nn.Module):
    """Gene means; writes down which rows it was given."""

    schema = Schema({"expression": Input(("cell", "gene"), observed=True)}, site_dims={"mean": ("gene",)})

    def __init__(self):
        super().__init__()
        self.seen = Shared()

    def forward(self, expression):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("cell", len(expression), dim=-1) as rows:
            self.seen.append(rows)
            observed = pyro.subsample(expression, event_dim=1)
            pyro.sample("expression", dist.Normal(mean, 1.0).to_event(1), obs=observed)


class Guide(torch.nn.Module):
    """A point, or a Normal of the given width."""

    def __init__(self, width=0.0):
        super().__init__()
        self.loc, self.width = torch.nn.Parameter(torch.ones(3)), width

    def forward(self, expression):
        law = dist.Normal(self.loc, self.width) if self.width else dist.Delta(self.loc)
        pyro.sample("mean", law.to_event(1))


def data_of(num):
    """Cells that differ from the first to the last: consecutive ones are unlike the rest."""
    noise = np.random.default_rng(0).normal(size=(num, 3))
    return {"expression": (("cell", "gene"), noise + np.linspace(-2, 4, num)[:, None])}


def run_of(num, batch_size, width=0.0):
    inputs = to_inputs(Shifts.schema, as_dataset(data_of(num), Shifts.schema))
    run = Run(Shifts(), Guide(width), Shifts.schema, inputs, Options(batch_size=batch_size), 0)
    run.model.seen.clear()
    return run


@pytest.mark.parametrize(("num", "batch_size"), [(103, 5), (1000, 7), (61, 60), (9, 1)])
def test_parts_add_up_to_the_whole(num, batch_size):
    """A point guide leaves no noise."""
    found, whole = run_of(num, batch_size).evaluate(), run_of(num, None).evaluate()
    assert found == pytest.approx(whole, rel=1e-12)


def test_equal_weights_of_unequal_parts_would_not():
    run = run_of(103, 5)
    with run._isolated(run.store), torch.no_grad():
        parts = [Supply({"cell": rows}) for rows in torch.arange(103).tensor_split(6)]
        values = []
        for part in parts:
            with part:
                values.append(run.objective.loss())
    assert np.mean(values) != pytest.approx(run_of(103, None).evaluate(), rel=1e-4)


@pytest.mark.parametrize(
    ("num", "batch_size", "evaluations"), [(100, 25, 16), (100, 50, 16), (300, 25, 18), (800, 10, 20)]
)
def test_every_row_counts_the_same_and_parts_stay_small(num, batch_size, evaluations):
    run = run_of(num, batch_size)
    run.evaluate()
    seen = run.model.seen
    assert len(seen) == evaluations
    assert max(map(len, seen)) <= 4 * batch_size
    counts = torch.bincount(torch.cat(list(seen)), minlength=num)
    assert counts.min() == counts.max() >= 1


def test_the_noise_of_shared_draws_is_that_of_sixteen_evaluations():
    """Draws of the shared mean move the loss of all rows; parts have draws of their own, 16 or more in all."""
    errors = {}
    for batch_size in (None, 25):
        run = run_of(400, batch_size, width=0.3)
        with run._isolated(run.store), torch.no_grad():
            values = [mean_loss(run.objective.loss, "cell", run.num_rows, batch_size, CPU) for _ in range(60)]
        errors[batch_size] = np.std(values)
    assert errors[25] < 1.5 * errors[None]


def test_a_run_with_minibatches_never_looks_at_all_rows_at_once():
    model = Shifts()
    svi(model, Guide(), data_of(500), num_steps=5, batch_size=10, progress=False)
    assert max(map(len, model.seen)) <= 40
    model.seen.clear()
    svi(model, Guide(), data_of(500), num_steps=5, progress=False)
    assert max(map(len, model.seen)) == 500


def test_errors_of_the_model_are_not_blamed_on_the_minibatches():
    class Wrong(Shifts):
        def forward(self, expression):
            super().forward(expression)
            pyro.factor("shapes", (expression @ torch.ones(4, 1, dtype=expression.dtype)).sum())

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        svi(Wrong(), Guide(), data_of(50), num_steps=2, batch_size=10, progress=False)

    class Whole(Shifts):
        def forward(self, expression):
            mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("cell", len(expression), dim=-1):
                pyro.sample("expression", dist.Normal(mean, 1.0).to_event(1), obs=expression)

    with pytest.raises(SchemaError, match="do not run on 10 rows of the plate 'cell'"):
        svi(Whole(), Guide(), data_of(50), num_steps=2, batch_size=10, progress=False)


def test_a_plate_that_no_dim_is_named_after():
    """The number of rows is then that of the plate."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        centred = y - y.mean(0)
        with pyro.plate("cell", len(y), dim=-1) as rows:
            pyro.sample("expression", dist.Normal(mean, 1.0).to_event(1), obs=centred[rows])

    class Other(Guide):
        def forward(self, y):
            super().forward(y)

    data = {"y": (("spot", "gene"), data_of(50)["expression"][1])}
    fit = svi(model, Other(), data, num_steps=3, batch_size=10, progress=False)
    assert fit.history.shape == (1, 3)

    def blind(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("cell", len(y), dim=-1):
            pyro.sample("expression", dist.Normal(mean, 1.0).to_event(1), obs=y - y.mean(0))

    with pytest.raises(SchemaError, match="do not run on 10 rows"):
        svi(blind, Other(), data, num_steps=3, batch_size=10, progress=False)
