"""Draws in one pass or one by one: the same numbers, discrete sites included."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal

from embergraph.inference import sampler, svi, to_datatree
from embergraph.inference.draws import arrange, log_mean_exp
from embergraph.inference.messengers import Supply, isolated, latent_sites
from embergraph.inference.sampler import Sampler
from embergraph.models.parts.errors import SchemaError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(15, 2)), RNG.normal(size=15)
DATA = {"x": (("cell", "covariate"), X), "y": ("cell", Y)}
QUICK = {"num_steps": 5, "progress": False}


def sideways(x, y):
    """Fine for many draws at once."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("cell", len(x), dim=-1):
        local = pyro.sample("local", dist.Normal(0.0, 1.0))
        pyro.sample("y_obs", dist.Normal((x * w).sum(-1) + local, scale), obs=y)


def product(x, y):
    """A matrix product of fixed rank, the usual way to write a regression."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    mean = pyro.deterministic("mean", x @ w, event_dim=1)
    with pyro.plate("cell", len(x), dim=-1):
        local = pyro.sample("local", dist.Normal(0.0, 1.0))
        pyro.sample("y_obs", dist.Normal(mean + local, scale), obs=y)


def leftmost(x, y):
    """Indexed from the left: many draws at once run without an error, and are wrong."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    pyro.deterministic("first", w[0].reshape(-1)[0])
    total = ((y - w.flatten()[0]) ** 2).sum()
    pyro.factor("score", -total / scale)


def drawn_from(model):
    def guide(x, y):
        with pyro.plate("cell", len(x), dim=-1):
            pyro.sample("local", dist.Normal(torch.zeros(()), 0.5))
        pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        pyro.sample("w", dist.Normal(torch.zeros(3 if model is leftmost else 2), 0.5).to_event(1))

    return poutine.block(guide, hide=["local", "cell"]) if model is leftmost else guide


INPUTS = {"x": torch.tensor(X, dtype=torch.float32), "y": torch.tensor(Y, dtype=torch.float32)}


@pytest.mark.parametrize(("model", "vectorised"), [(sideways, True), (product, False), (leftmost, False)])
def test_log_densities_are_those_of_each_draw_alone(model, vectorised):
    guide = drawn_from(model)
    torch.manual_seed(0)
    found = Sampler(model, guide, INPUTS)
    assert found.vectorised == vectorised
    for where in found.chunks(6)[:3]:
        count = where.stop - where.start
        values, log_q = found.guide_values(count)
        result = found.model_pass(values, count, log_q=log_q)
        for i in range(count):
            own = {name: value[i] for name, (_, value) in result.values.items()}
            for fn, density in ((model, result.log_p), (guide, log_q)):
                with Supply(own):
                    trace = poutine.trace(fn).get_trace(**INPUTS)
                assert float(trace.log_prob_sum()) == pytest.approx(float(density[i]), rel=1e-4)
            if model is leftmost:
                assert own["first"] == own["w"][0]
            else:
                with Supply(own):
                    site = poutine.trace(model).get_trace(**INPUTS).nodes["y_obs"]
                torch.testing.assert_close(site["fn"].log_prob(INPUTS["y"]), result.log_likelihood["y_obs"][1][i])


def test_a_regression_written_with_a_matrix_product_exports_like_one_that_is_not():
    """The same numbers up to the random stream, the same names and shapes."""
    trees = []
    for model in (sideways, product):
        fit = svi(model, AutoNormal, DATA, num_steps=100, learning_rate=0.05, seed=1, progress=False)
        trees.append(fit.posterior(DATA, 300))
        new = {"x": (("cell", "covariate"), X[:4]), "y": ("cell", Y[:4])}
        assert fit.predict(new, 20)["y_obs"].dims == ("chain", "draw", "cell")
        assert fit.log_density(new, 20).shape == (4,)
    a, b = trees
    for group in ("posterior", "prior", "posterior_predictive", "log_likelihood"):
        for name, value in a[group].data_vars.items():
            assert b[group][name].dims == value.dims
            assert b[group][name].shape == value.shape
    for name in ("w", "local", "scale"):
        means = [t["posterior"][name].mean("draw").values for t in trees]
        error = a["posterior"][name].std("draw").values / np.sqrt(300)
        assert (np.abs(means[0] - means[1]) < 6 * error).all()


@pytest.mark.parametrize("stored", [True, False])
def test_chunks_change_nothing_but_the_random_stream(monkeypatch, stored):
    torch.manual_seed(0)
    values, _ = Sampler(sideways, drawn_from(sideways), INPUTS).guide_values(10)
    whole = Sampler(sideways, None, INPUTS)
    monkeypatch.setattr(sampler, "CHUNK_ELEMENTS", 3 * sum(s.numel() for s in whole.shapes.values()) + 3 * 15)
    parts = Sampler(sideways, None, INPUTS)
    assert [s.stop - s.start for s in parts.chunks(10)] == [3, 3, 3, 1]
    assert len(whole.chunks(10)) == 1
    if stored:
        one = whole.model_pass(values, 10)
        many = [parts.model_pass({n: v[s] for n, v in values.items()}, s.stop - s.start) for s in parts.chunks(10)]
        for i, field in enumerate(("values", "log_likelihood")):
            for name, (plates, value) in getattr(one, field).items():
                assert getattr(many[i], field)[name][0] == plates
                assert torch.equal(torch.cat([getattr(p, field)[name][1] for p in many]), value)
        torch.testing.assert_close(torch.cat([p.log_p for p in many]), one.log_p)
        return
    data = {name: (dims, np.float32(values)) for name, (dims, values) in DATA.items()}
    tree = to_datatree(sideways, drawn_from(sideways), data, num_samples=600)
    w = tree["posterior"]["w"].values
    assert w.shape == (1, 600, 2)
    assert np.abs(w.mean((0, 1))).max() < 5 * 0.5 / 600**0.5
    assert len(np.unique(w)) == w.size  # chunks do not repeat each other
    assert tree["log_likelihood"]["y_obs"].dtype == np.float32


MEANS = np.array([-1.0, 1.5])


def mixture(y):
    means = pyro.sample("means", dist.Normal(torch.tensor(MEANS), 0.01).to_event(1))
    with pyro.plate("cell", len(y), dim=-1):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("y_obs", dist.Normal(means[..., z] if means.dim() == 1 else _pick(means, z), 1.0), obs=y)


def _pick(means, z):
    shape = torch.broadcast_shapes(means.shape[:-1], z.shape)
    return means.expand(*shape, 2).gather(-1, z.expand(shape).unsqueeze(-1)).squeeze(-1)


def test_enumerated_sites_get_their_exact_posterior():
    data = {"y": ("cell", Y)}
    hidden = poutine.block(mixture, hide=["z"])
    fit = svi(mixture, lambda model: AutoDelta(hidden), data, num_steps=100, learning_rate=0.05, progress=False)
    tree = fit.posterior(data, 4000, predictive=False, prior=False)
    means = tree["posterior"]["means"].values[0, 0]
    joint = np.array([0.3, 0.7]) * np.exp(-0.5 * (Y[:, None] - means) ** 2)
    exact = joint[:, 1] / joint.sum(1)
    share = tree["posterior"]["z"].mean(("chain", "draw"))
    assert tree["posterior"]["z"].dims == ("chain", "draw", "cell")
    assert np.abs(share - exact).max() < 4.5 * 0.5 / 4000**0.5
    assert np.abs(share - 0.7).max() > 0.2  # and not its prior
    stats = tree["sample_stats"].isel(draw=0)
    with isolated(0, fit.store, torch.float64):
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(fit.model, fit.guide, y=torch.tensor(Y))
    assert float((stats["log_q"] - stats["log_p"]).squeeze()) == pytest.approx(loss, rel=1e-6)
    assert fit.settings["final_loss"] == pytest.approx(loss, rel=1e-6)


def test_predictions_and_densities_do_not_peep_at_enumerated_sites():
    """The class of a new cell is drawn from its prior, not from the observation that is to be predicted or scored."""
    data = {"y": ("cell", Y)}
    hidden = poutine.block(mixture, hide=["z"])
    fit = svi(mixture, lambda model: AutoDelta(hidden), data, num_steps=100, learning_rate=0.05, progress=False)
    means = fit.global_draws(2)["means"][0].reshape(2).numpy()
    far = {"y": ("cell", np.array([-1.0, 1.5, 4.0]))}
    drawn = fit.predict(far, 4000)["y_obs"]
    assert np.abs(drawn.mean(("chain", "draw")) - means @ [0.3, 0.7]).max() < 0.12
    components = np.exp(-0.5 * (far["y"][1][:, None] - means) ** 2) / np.sqrt(2 * np.pi)
    exact = np.log(components @ [0.3, 0.7])
    np.testing.assert_allclose(fit.log_density(far, 4000), exact, atol=0.1)


def test_masked_entries_do_not_count():
    def masked(y, seen):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("cell", len(y)), poutine.mask(mask=seen), poutine.scale(scale=3.0):
            pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y)

    seen = Y > 0
    fit = svi(masked, AutoNormal, {"y": ("cell", Y), "seen": ("cell", seen)}, **QUICK)
    tree = fit.posterior({"y": ("cell", Y), "seen": ("cell", seen)}, 10, prior=False)
    mean = tree["posterior"]["mean"].values[0, :, None]
    exact = np.where(seen, -0.5 * (Y - mean) ** 2 - 0.5 * np.log(2 * np.pi), 0.0)
    np.testing.assert_allclose(tree["log_likelihood"]["y_obs"][0], exact, rtol=1e-6)


def test_rows_that_a_model_chooses_itself_do_not_scale_the_likelihood():
    def chooses(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=5) as rows:
            pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y[rows])

    found = Sampler(chooses, AutoNormal(chooses), {"y": torch.zeros(15)})
    assert found.vectorised
    values = {"mean": torch.zeros(4, 1)}
    result = found.model_pass(values, 4)
    torch.testing.assert_close(result.log_likelihood["y_obs"][1], torch.full((4, 5), -0.5 * np.log(2 * np.pi)))
    assert float(result.log_p[0]) == pytest.approx(-0.5 * np.log(2 * np.pi) * 16)


def test_arrange_refuses_axes_that_are_not_draws_or_plates():
    with pyro.plate("cell", 4, dim=-1):
        trace = poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).get_trace()
    site = latent_sites(trace)["z"]
    assert arrange(torch.zeros(3, 1, 4), site, 3, 2, 0)[1].shape == (3, 4)
    assert arrange(torch.zeros(4), site, 3, 2, 0)[1].shape == (3, 4)
    for shape in ((3, 2, 4), (2, 1, 4), (3, 1, 5)):
        with pytest.raises(SchemaError, match="z: found shape"):
            arrange(torch.zeros(shape), site, 3, 2, 0)


def test_log_mean_exp():
    values = torch.tensor([[-1000.0, 0.0], [-1001.0, 1.0]])
    exact = np.array([-1000 + np.log((1 + np.exp(-1)) / 2), np.log((1 + np.e) / 2)])
    np.testing.assert_allclose(log_mean_exp(values), exact, rtol=1e-6)
