"""The NOTMAD model: its two forms, its density, its prior."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine

import embergraph as eg
from embergraph.inference.density import LogDensity
from embergraph.models import NOTMAD, AcyclicityFactor
from embergraph.models.parts.encoders import ENCODERS
from embergraph.models.parts.projection import is_acyclic

N, P, M, K = 30, 4, 3, 2


def small_data(seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    return eg.from_arrays(rng.normal(size=(N, P)), rng.uniform(-1, 1, (N, M)))


def inputs_of(data: xr.Dataset) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(data[name].values) for name in ("covariates", "expression")}


def draw(model: NOTMAD, inputs: dict[str, torch.Tensor], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return poutine.trace(model).get_trace(**inputs)


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
@pytest.mark.parametrize("order", ["uniform", None, [2, 0, 3, 1]])
@pytest.mark.parametrize("noise", ["equal", "free"])
def test_restarts_on_a_tensor_axis_equal_the_trace(encoder: str, order: Any, noise: str) -> None:
    data = small_data()
    inputs = inputs_of(data)
    model = NOTMAD.for_data(data, K, encoder=encoder, order=order, noise=noise).double()
    traces = [draw(model, inputs, seed) for seed in range(3)]
    orders = torch.stack([t.nodes["order"]["value"] for t in traces]) if order == "uniform" else None
    density = LogDensity(model, inputs, {} if orders is None else {"order": orders.unsqueeze(1)})
    values = {name: torch.stack([t.nodes[name]["value"] for t in traces]) for name in density.shapes}
    got = density(density.pack(values), jacobian=False)
    wanted = torch.stack([t.log_prob_sum() for t in traces])
    torch.testing.assert_close(got, wanted)
    assert got.std() > 1, "restarts must differ for this to mean anything"


def test_log_density_by_hand() -> None:
    """The whole joint of a fixed order, written out with plain loops."""
    data = small_data()
    inputs = inputs_of(data)
    order = [2, 0, 3, 1]
    model = NOTMAD.for_data(data, K, encoder="linear", order=order).double()
    trace = draw(model, inputs)
    v = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}
    W = torch.zeros(K, P, P, dtype=torch.double)
    e = 0
    for a in range(P):
        for b in range(a + 1, P):
            W[:, order[a], order[b]] = v["edges"][:, e]
            e += 1
    torch.testing.assert_close(trace.nodes["archetypes"]["value"], W)
    C = inputs["covariates"]
    u = (C - C.mean(0)) / (2 * C.std(0, correction=0))
    amplitude = 1.5 * v["encoder_log_amplitude"].exp()
    Z = (u @ v["encoder_weights"] + v["encoder_bias"]).softmax(-1)
    total = dist.Normal(0.0, 0.5).log_prob(v["encoder_log_amplitude"])
    total = total + dist.Normal(0.0, amplitude).log_prob(v["encoder_weights"]).sum()
    total = total + dist.Normal(0.0, 1.0).log_prob(v["encoder_bias"]).sum()
    total = total + dist.Normal(0.0, 1.0).log_prob(v["intercepts"]).sum()
    total = total + dist.LogNormal(0.0, 0.5).log_prob(v["sigma"])
    slab, spike = (dist.Normal(0.0, s).log_prob(v["edges"]) for s in (0.8, 0.05))
    total = total + torch.logaddexp(np.log(0.3) + slab, np.log(0.7) + spike).sum()
    for i in range(N):
        Wi = (Z[i, :, None, None] * W).sum(0)
        mean = Z[i] @ v["intercepts"] + inputs["expression"][i] @ Wi
        total = total + dist.Normal(mean, v["sigma"]).log_prob(inputs["expression"][i]).sum()
    torch.testing.assert_close(trace.log_prob_sum(), total, rtol=1e-6, atol=1e-4)


def test_prior_draws_are_acyclic_and_reach_all_directions() -> None:
    data = small_data()
    model = NOTMAD.for_data(data, K).double()
    graphs = torch.stack([draw(model, inputs_of(data), s).nodes["archetypes"]["value"] for s in range(60)])
    assert bool(is_acyclic(graphs).all())
    union = (graphs != 0).any(1)
    assert bool(is_acyclic(union.double()).all()), "archetypes share one order"
    share = union.double().mean(0)[~torch.eye(P, dtype=torch.bool)]
    assert share.min() > 0.25, "every direction has probability one half"
    assert share.max() < 0.75


def test_simulated_cells_satisfy_their_equations() -> None:
    data = small_data()
    model = NOTMAD.for_data(data, K, noise="free").double()
    torch.manual_seed(1)
    trace = poutine.trace(model).get_trace(torch.as_tensor(data["covariates"].values))
    X, sem = trace.nodes["expression"]["value"], trace.nodes["expression"]["fn"]
    standard = (X - sem.regression(X)) / trace.nodes["sigma"]["value"]
    assert X.shape == (N, P)
    assert abs(float(standard.std()) - 1) < 0.2
    cell_by_cell = torch.einsum("na,nab->nb", X, sem.networks()) + sem.mixture @ trace.nodes["intercepts"]["value"]
    torch.testing.assert_close(sem.regression(X), cell_by_cell)


@pytest.mark.parametrize("function", ["expm", "logdet"])
def test_relaxed_energy(function: str) -> None:
    data = small_data()
    inputs = inputs_of(data)
    weak = dist.Normal(0.0, 0.2)
    model = NOTMAD.for_data(
        data, K, order=None, edge_prior=weak, acyclicity=AcyclicityFactor(function, weight=3.0)
    ).double()
    trace = draw(model, inputs)
    trace.compute_log_prob()
    W = trace.nodes["archetypes"]["value"]
    A = W.square().sum(0)
    if function == "expm":
        h = torch.matrix_exp(A).trace() - P
    else:
        h = -torch.logdet(torch.eye(P, dtype=torch.double) - A)
    torch.testing.assert_close(trace.nodes["acyclicity"]["log_prob_sum"], -N * 3.0 * h)


def test_cyclic_likelihood_is_the_missing_determinant() -> None:
    data = small_data()
    inputs = inputs_of(data)
    factor = AcyclicityFactor("expm", "samples", cyclic_likelihood=True, num_rows=N)
    model = NOTMAD.for_data(data, K, order=None, edge_prior=dist.Normal(0.0, 0.3), acyclicity=factor).double()
    trace = draw(model, inputs)
    trace.compute_log_prob()
    sem = trace.nodes["expression"]["fn"]
    eye = torch.eye(P, dtype=torch.double)
    covariance = [torch.linalg.inv(eye - w).T @ torch.linalg.inv(eye - w) for w in sem.networks()]
    mean = [
        b @ torch.linalg.inv(eye - w)
        for b, w in zip(sem.mixture @ trace.nodes["intercepts"]["value"], sem.networks(), strict=True)
    ]
    sigma = trace.nodes["sigma"]["value"]
    dense = sum(
        torch.distributions.MultivariateNormal(m, sigma**2 * c).log_prob(x)
        for m, c, x in zip(mean, covariance, inputs["expression"], strict=True)
    )
    got = trace.nodes["expression"]["log_prob_sum"] + trace.nodes["log_abs_det"]["log_prob_sum"]
    torch.testing.assert_close(got, dense)


def test_random_rows_estimate_the_energy_of_all_cells() -> None:
    data = small_data()
    inputs = inputs_of(data)
    model = NOTMAD.for_data(data, K, order=None, acyclicity=AcyclicityFactor(scope="samples", num_rows=N)).double()
    start = draw(model, inputs)
    start.compute_log_prob()
    full = start.nodes["acyclicity"]["log_prob_sum"]
    model.acyclicity.num_rows = 5
    latent = [n for n, s in start.nodes.items() if s["type"] == "sample" and not s["is_observed"]]
    fixed = {n: start.nodes[n]["value"] for n in latent if n not in ("cell", "acyclicity_cell")}
    parts = []
    for seed in range(400):
        trace = draw(poutine.condition(model, fixed), inputs, seed)
        trace.compute_log_prob()
        parts.append(trace.nodes["acyclicity"]["log_prob_sum"])
    parts_tensor = torch.stack(parts)
    error = parts_tensor.std() / 20
    assert error > 0
    assert abs(float(parts_tensor.mean() - full)) < 4 * float(error)


def test_permuting_archetypes_changes_nothing() -> None:
    data = small_data()
    inputs = inputs_of(data)
    model = NOTMAD.for_data(data, 3, order=[0, 1, 2, 3]).double()
    trace = draw(model, inputs)
    swap = torch.tensor([2, 0, 1])
    v = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    v = {n: x for n, x in v.items() if n != "cell"}
    moved = dict(v)
    for name in ("edges", "intercepts", "encoder_bias"):
        moved[name] = v[name][swap]
    moved["encoder_weights"] = v["encoder_weights"][:, swap]
    other = poutine.trace(poutine.condition(model, moved)).get_trace(**inputs)
    torch.testing.assert_close(other.log_prob_sum(), trace.log_prob_sum())


def test_a_hierarchical_prior_is_sampled_and_scored() -> None:
    def laplace_with_learned_scale(shape: tuple[int, ...]) -> Any:
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(0.3, dtype=torch.double)))
        return dist.Laplace(torch.zeros((), dtype=torch.double), tau[..., None, None])

    data = small_data()
    inputs = inputs_of(data)
    model = NOTMAD.for_data(data, K, order=[0, 1, 2, 3], edge_prior=laplace_with_learned_scale).double()
    traces = [draw(model, inputs, seed) for seed in range(2)]
    density = LogDensity(model, inputs)
    assert "tau" in density.shapes
    values = {name: torch.stack([t.nodes[name]["value"] for t in traces]) for name in density.shapes}
    wanted = torch.stack([t.log_prob_sum() for t in traces])
    torch.testing.assert_close(density(density.pack(values), jacobian=False), wanted)
    assert model.settings() is None


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_settings_rebuild_the_model(encoder: str) -> None:
    data = small_data()
    inputs = inputs_of(data)
    model = NOTMAD.for_data(data, K, encoder=encoder, noise="free", edge_prior=dist.Laplace(0.0, 0.3)).double()
    settings = model.settings()
    assert settings is not None
    other = NOTMAD.from_settings(settings).double()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(draw(other, inputs).log_prob_sum(), draw(model, inputs).log_prob_sum())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": [0, 1, 1, 2]}, "order: found"),
        ({"order": "random"}, "order: found 'random'"),
        ({"noise": "both"}, "noise: found 'both'"),
        ({"encoder": "cnn"}, "encoder: found 'cnn'"),
        ({"num_archetypes": 0}, "num_archetypes: found 0"),
        ({"num_archetypes": 2.5}, "num_archetypes: found 2.5"),
        ({"noise_prior": dist.Normal(0.0, 1.0)}, "noise_prior: found a prior on"),
        ({"edge_prior": dist.Laplace(torch.zeros(7), 1.0)}, "edge_prior: found a prior that does not expand"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(eg.DataError, match=words):
        NOTMAD.for_data(small_data(), **options)


def test_bad_acyclicity_and_data() -> None:
    with pytest.raises(eg.DataError, match="function"):
        AcyclicityFactor("poly2")
    with pytest.raises(eg.DataError, match="scope"):
        AcyclicityFactor(scope="cells")  # type: ignore[arg-type]
    with pytest.raises(eg.DataError, match="cyclic_likelihood"):
        AcyclicityFactor(cyclic_likelihood=True)
    with pytest.raises(eg.DataError, match="covariates"):
        NOTMAD.for_data(small_data().drop_vars("covariates"))


def test_noise_follows_the_standardisation() -> None:
    data = small_data()
    assert NOTMAD.for_data(data).noise == "equal"
    assert NOTMAD.for_data(eg.standardize(data, scale="common")[0]).noise == "equal"
    assert NOTMAD.for_data(eg.standardize(data, scale="gene")[0]).noise == "free"
