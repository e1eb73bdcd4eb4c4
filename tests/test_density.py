"""The log joint density as a function of vectors: Pyro's own number for one value, and for many at once."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from embergraph.inference.density import LogDensity
from embergraph.inference.messengers import Supply
from embergraph.models.parts.errors import SchemaError
from embergraph.models.parts.priors import Prior

DOUBLE = {"dtype": torch.double}
Y = torch.tensor(np.random.default_rng(0).normal(size=(6, 4)))


class Model(torch.nn.Module):
    """Two plates, a hierarchical prior, positive, interval, simplex and Cholesky sites, a factor, a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor(0.5, **DOUBLE))
        self.prior = Prior(self.hierarchy)

    def hierarchy(self, shape):
        width = pyro.sample("width", dist.HalfNormal(self.weight))
        return dist.Normal(torch.zeros((), **DOUBLE), width.reshape(width.shape + (1,) * len(shape)))

    def forward(self, y):
        one = torch.ones((), **DOUBLE)
        edges = pyro.sample("edges", self.prior.expand((2, 3)))
        share = pyro.sample("share", dist.Uniform(-one, 2 * one))
        cells, genes = pyro.plate("cell", len(y), dim=-2), pyro.plate("gene", 4, dim=-1)
        with genes:
            scale = pyro.sample("scale", dist.LogNormal(0 * one, one))
            mixture = pyro.sample("mixture", dist.Dirichlet(torch.ones(3, **DOUBLE)))
            pyro.sample("factor", dist.LKJCholesky(3, one))
        with cells:
            rows = pyro.subsample(y, event_dim=0)
            z = pyro.sample("z", dist.Normal(share, one))
            with genes:
                mean = (edges.sum(-2) * mixture).sum(-1) + z
                pyro.sample("y_obs", dist.Normal(mean, scale), obs=rows)
        pyro.factor("pull", -self.weight * edges.square().sum((-1, -2)))


@pytest.fixture
def density():
    torch.manual_seed(0)
    return LogDensity(Model(), {"y": Y})


def single(density, values, i):
    """Values of one draw in the shapes that a plain run has."""
    return {n: v[i].reshape(density.example[n].shape) for n, v in values.items()}


def test_each_draw_scores_what_pyro_says_of_it_alone(density):
    vectors = torch.randn(5, density.num_dims, **DOUBLE)
    values = density.unpack(vectors)
    found, terms = density(vectors, jacobian=False), density.terms(vectors)
    for i in range(5):
        with Supply(single(density, values, i)):
            trace = poutine.trace(density.model).get_trace(Y)
        trace.compute_log_prob()
        assert float(found[i]) == pytest.approx(float(trace.log_prob_sum()), rel=1e-10)
        for name, term in terms.items():
            assert float(term[i]) == pytest.approx(float(trace.nodes[name]["log_prob"].sum()), rel=1e-10)
    assert set(terms) == {*density.sizes, "y_obs", "pull"}
    assert len({round(float(v), 6) for v in found}) == 5


def test_the_jacobian_is_that_of_unpack(density):
    """Log volume change of every site, from autograd; simplex and Cholesky factors in their own coordinates."""
    vector = torch.randn(1, density.num_dims, **DOUBLE)
    extra = float(density(vector) - density(vector, jacobian=False))
    wanted = 0.0
    for name, where in density.slices().items():

        def constrained(part, name=name, where=where):
            full = torch.cat([vector[0, : where.start], part, vector[0, where.stop :]])
            value = density.unpack(full.unsqueeze(0))[name][0]
            if name == "mixture":
                value = value[..., :-1]
            if name == "factor":
                value = torch.stack([value[..., 1, 0], value[..., 2, 0], value[..., 2, 1]], -1)
            return value.flatten()

        jacobian = torch.autograd.functional.jacobian(constrained, vector[0, where])
        wanted += float(torch.linalg.slogdet(jacobian).logabsdet)
    assert extra == pytest.approx(wanted, rel=1e-8)


def test_supports_shapes_and_places(density):
    vectors = 3 * torch.randn(7, density.num_dims, **DOUBLE)
    values = density.unpack(vectors)
    assert {n: tuple(v.shape) for n, v in values.items()} == {
        "width": (7, 1, 1), "edges": (7, 1, 1, 2, 3), "share": (7, 1, 1), "scale": (7, 1, 4), "mixture": (7, 1, 4, 3),
        "factor": (7, 1, 4, 3, 3), "z": (7, 6, 1),
    }  # fmt: skip
    assert (values["width"] > 0).all()
    assert ((values["share"] > -1) & (values["share"] < 2)).all()
    torch.testing.assert_close(values["mixture"].sum(-1), torch.ones(7, 1, 4, **DOUBLE))
    torch.testing.assert_close(values["factor"].square().sum(-1), torch.ones(7, 1, 4, 3, **DOUBLE))
    assert sorted((s.start, s.stop) for s in density.slices().values())[0] == (0, 1)
    assert sum(s.stop - s.start for s in density.slices().values()) == density.num_dims == 1 + 6 + 1 + 4 + 8 + 12 + 6
    torch.testing.assert_close(density.pack(values), vectors)
    assert density.event_dims["edges"] == 2
    assert density.plate_sizes == {"cell": 6, "gene": 4}


def test_fixed_sites_are_not_in_the_vector(density):
    edges, z = torch.randn(2, 3, **DOUBLE), torch.randn(3, 6, 1, **DOUBLE)
    held = LogDensity(density.model, {"y": Y}, {"edges": edges, "z": z})
    assert held.num_dims == density.num_dims - 12
    vectors = torch.randn(3, held.num_dims, **DOUBLE)
    values = held.unpack(vectors)
    for i, found in enumerate(held(vectors, jacobian=False)):
        with Supply({**single(held, values, i), "edges": edges, "z": z[i]}):
            trace = poutine.trace(density.model).get_trace(Y)
        assert float(found) == pytest.approx(float(trace.log_prob_sum()), rel=1e-10)


def test_rows_of_a_plate_can_be_supplied(density):
    vector = torch.randn(2, density.num_dims, **DOUBLE)
    held = LogDensity(density.model, {"y": Y}, {"z": torch.zeros(1, 1, **DOUBLE)})
    part = torch.randn(2, held.num_dims, **DOUBLE)
    whole = held.terms(part)
    batches = []
    for rows in (torch.tensor([0, 3]), torch.tensor([1, 4]), torch.tensor([2, 5])):
        with Supply({"cell": rows}):
            batches.append(held.terms(part)["y_obs"])
    torch.testing.assert_close(torch.stack(batches).mean(0), whole["y_obs"])
    assert torch.isfinite(density(vector)).all()


def test_gradients_reach_every_dimension_and_no_other_draw(density):
    vectors = torch.randn(3, density.num_dims, **DOUBLE, requires_grad=True)
    density(vectors)[1].backward()
    assert (vectors.grad[1] != 0).all()
    assert (vectors.grad[[0, 2]] == 0).all()


def test_validation_stays_as_it_was_and_nan_goes_through(density):
    before = dist.is_validation_enabled()
    vector = torch.full((1, density.num_dims), torch.nan, **DOUBLE)
    assert torch.isnan(density(vector)).all()
    assert dist.is_validation_enabled() == before


def test_a_model_without_plates_or_data():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1))

    density = LogDensity(model, {})
    vectors = torch.randn(4, 2, **DOUBLE)
    torch.testing.assert_close(density(vectors), dist.Normal(0.0, 1.0).log_prob(vectors).sum(-1))
    assert density.device == torch.device("cpu")


def test_discrete_sites_must_be_held():
    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3, **DOUBLE)))
        pyro.sample("x", dist.Normal(z, 1.0))

    with pytest.raises(SchemaError, match=r"z: found a discrete site; wanted it in fixed="):
        LogDensity(model, {})
    density = LogDensity(model, {}, {"z": torch.ones((), **DOUBLE)})
    exact = np.log(0.3) - 0.5 * np.log(2 * np.pi)
    assert float(density(torch.ones(1, 1, **DOUBLE))) == pytest.approx(exact)
    with pytest.raises(SchemaError, match=r"fixed: found 'w'; wanted latent sites of the model, among \['x', 'z'\]"):
        LogDensity(model, {}, {"w": torch.ones(())})
