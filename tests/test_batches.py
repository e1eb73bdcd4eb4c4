"""Minibatches: an unbiased estimate of the full loss, refused where it would not be one."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoNormal

from embergraph.inference import svi
from embergraph.inference.batches import Epochs
from embergraph.inference.inputs import as_dataset, to_inputs
from embergraph.inference.messengers import Supply
from embergraph.inference.options import Options
from embergraph.inference.plain import schema_of
from embergraph.inference.run import Run
from embergraph.models.parts.errors import SchemaError

N = 60
Y = np.random.default_rng(0).normal(size=(N, 3)) + 1.0
DATA = {"y": (("cell", "gene"), Y)}


def model(y):
    """A latent number a cell, a shared mean, three genes."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("cell", len(y), dim=-1):
        rows = pyro.subsample(y, event_dim=1)
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y_obs", dist.Normal(z.unsqueeze(-1).expand(rows.shape), 1.0).to_event(1), obs=rows)


class Amortised(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 1)

    def forward(self, y):
        pyro.module("net", self.net)
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.zeros(())), 0.1))
        with pyro.plate("cell", len(y), dim=-1):
            rows = pyro.subsample(y, event_dim=1)
            pyro.sample("z", dist.Normal(self.net(rows).squeeze(-1), 0.5))


def with_plates(model):
    return AutoNormal(model, create_plates=lambda *args, **kwargs: pyro.plate("cell", N, dim=-1))


def run_of(guide, batch_size):
    schema = schema_of(model, as_dataset(DATA))
    return Run(model, guide, schema, to_inputs(schema, as_dataset(DATA)), Options(batch_size=batch_size), 0)


@pytest.mark.parametrize("guide", [Amortised(), with_plates])
def test_mean_of_batch_losses_is_the_full_loss(guide):
    """Also: a sampler's plain sum over the rows of a batch, without the plate's factor, is far off."""
    run = run_of(guide, 20)
    full, batches = [], []
    with run._isolated(run.store), torch.no_grad():
        for step in range(300):
            full.append(run.objective.elbo.loss(run.model, run.guide, **run.inputs))
            with Supply({"cell": run._epochs.rows(step)}):
                batches.append(run.objective.elbo.loss(run.model, run.guide, **run.inputs))
    error = np.hypot(np.std(full), np.std(batches)) / np.sqrt(300)
    assert abs(np.mean(batches) - np.mean(full)) < 4 * error
    assert error < 0.02 * np.mean(full)


@pytest.mark.parametrize(("num_rows", "size"), [(60, 20), (60, 7), (60, 40), (5, 1)])
def test_an_epoch_takes_every_row_at_most_once_and_few_sit_out(num_rows, size):
    epochs = Epochs(num_rows, size, 0, torch.device("cpu"))
    steps = num_rows // size
    drawn = [torch.cat([epochs.rows(epoch * steps + batch) for batch in range(steps)]) for epoch in range(300)]
    assert all(len(set(rows.tolist())) == len(rows) == steps * size for rows in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    share = torch.bincount(torch.cat(drawn), minlength=num_rows) / len(drawn)
    wanted = steps * size / num_rows
    assert (share - wanted).abs().max() <= 5 * (wanted * (1 - wanted) / len(drawn)) ** 0.5  # no row is left behind


def test_rows_follow_from_seed_and_step_alone():
    one, other = (Epochs(60, 7, seed, torch.device("cpu")) for seed in (0, 1))
    forth = [one.rows(step) for step in range(30)]
    torch.manual_seed(3)
    back = [one.rows(step) for step in reversed(range(30))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forth, back, strict=True))
    assert not torch.equal(forth[0], other.rows(0))
    assert run_of(with_plates, N)._rows() == {}  # a batch of all rows is none


def test_batches_train_to_the_full_optimum_and_the_export_is_not_scaled():
    fit = svi(model, with_plates, DATA, num_steps=400, batch_size=20, learning_rate=0.03, progress=False)
    tree = fit.posterior(DATA, 1000, predictive=False, prior=False)
    draws = tree["posterior"].to_dataset()
    conditional = (float(draws["mean"].mean()) + Y.sum(1)) / 4  # posterior mean of z given that of the mean
    assert np.square(draws["z"].mean(("chain", "draw")).values - conditional).mean() < 0.2**2
    assert float(draws["mean"].std()) == pytest.approx((1 + N) ** -0.5, rel=0.3)  # without the factor: 70 % wider
    z = draws["z"].values[..., None]
    exact = (-0.5 * (Y - z) ** 2 - 0.5 * np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(tree["log_likelihood"]["y_obs"], exact, rtol=1e-5)
    stats = tree["sample_stats"].to_dataset()
    assert float((stats["log_q"] - stats["log_p"]).mean()) == pytest.approx(fit.settings["final_loss"], rel=0.02)


@pytest.mark.parametrize("guide", [AutoDiagonalNormal, AutoLowRankMultivariateNormal])
def test_joint_guides_with_local_latents_are_refused(guide):
    with pytest.raises(SchemaError, match=r"batch_size: Auto\w+ is a joint guide and cannot subsample 'z'"):
        svi(model, guide, DATA, num_steps=2, batch_size=20, progress=False)
    svi(model, guide, DATA, num_steps=2, batch_size=N, progress=False)  # all rows: nothing to refuse


def test_a_joint_guide_of_global_sites_alone_is_welcome():
    def shared(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("cell", len(y), dim=-1):
            pyro.sample("y_obs", dist.Normal(mean, 1.0).to_event(1), obs=pyro.subsample(y, event_dim=1))

    fit = svi(shared, AutoDiagonalNormal, DATA, num_steps=2, batch_size=20, progress=False)
    assert fit.history.shape == (1, 2)


def test_what_cannot_be_subsampled_is_refused_before_any_step():
    def blind(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("cell", len(y), dim=-1):
            pyro.sample("y_obs", dist.Normal(mean, torch.ones(3)).to_event(1), obs=y)

    with pytest.raises(SchemaError, match="do not run on 20 rows of the plate 'cell'"):
        svi(blind, AutoNormal, DATA, batch_size=20, progress=False)
    with pytest.raises(SchemaError, match=r"(?s)do not run on 20 rows.*create_plates"):
        svi(model, AutoNormal, DATA, batch_size=20, progress=False)


def test_a_missing_plate_is_named():
    def flat(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y_obs", dist.Normal(mean, 1.0).expand(y.shape).to_event(2), obs=y)

    with pytest.raises(SchemaError, match=r"batch_size: found plates \[\] in the model; wanted one named 'cell'"):
        svi(flat, AutoNormal, DATA, batch_size=20, progress=False)
