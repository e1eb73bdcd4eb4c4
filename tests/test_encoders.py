"""Encoders: what reaches the logits, what does not, and which process their features approximate."""

from __future__ import annotations

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from embergraph.models.parts.encoders import ENCODERS, Encoder, GPEncoder, GPJointEncoder, LinearEncoder, NAMEncoder
from embergraph.models.parts.errors import LoadError
from embergraph.models.parts.priors import NAMED

DOUBLE = {"dtype": torch.double}
RNG = np.random.default_rng(0)
N, K = 60, 3
# two smooth columns on scales far apart, an indicator, a constant
C = torch.tensor(
    np.column_stack([RNG.normal(5.0, 2.0, N), 1e4 * RNG.uniform(size=N), RNG.integers(0, 2, N), np.full(N, 0.7)])
)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def drawn(encoder: Encoder) -> dict[str, torch.Tensor]:
    with poutine.block():
        return encoder.weights(K)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_column_reaches_the_logits_and_a_constant_one_does_not(name):
    encoder = ENCODERS[name](C)
    inputs = C.clone().requires_grad_()
    logits = encoder(inputs, drawn(encoder))
    assert logits.shape == (N, K)
    gradient = torch.autograd.grad(logits[:, 0].sum(), inputs)[0] * C.std(0)
    assert (gradient[:, :3].abs().mean(0) > 1e-3).all()
    assert (gradient[:, 3] == 0).all()
    moved = C + torch.tensor([0.0, 0.0, 0.0, 7.0])  # another constant in new cells says nothing that was learnt
    weights = drawn(encoder)
    assert torch.equal(encoder(moved, weights), encoder(C, weights))


def test_a_constant_whose_spread_is_not_zero_in_floating_point():
    constant = torch.full((60, 1), 0.7, **DOUBLE)
    assert constant.std(0, correction=0) > 0
    for name in ENCODERS:
        encoder = ENCODERS[name](constant)
        features = encoder.features(torch.tensor([[0.7], [5.0]], **DOUBLE), drawn(encoder))
        assert torch.equal(features[0], features[1])


@pytest.mark.parametrize("name", ENCODERS)
def test_scaling_of_a_column_does_not_matter(name):
    encoder, other = ENCODERS[name](C), ENCODERS[name](C * 3 - 11)
    weights = drawn(encoder)
    torch.testing.assert_close(other(C * 3 - 11, weights), encoder(C, weights))
    u = encoder.scaled(C)[:, :3]
    torch.testing.assert_close(u.mean(0), torch.zeros(3, **DOUBLE))
    torch.testing.assert_close(u.std(0, correction=0), torch.full((3,), 0.5, **DOUBLE))


@pytest.mark.parametrize("name", ENCODERS)
def test_features_have_names_and_places(name):
    encoder = ENCODERS[name](C)
    features = encoder.features(C, drawn(encoder))
    assert features.shape == (N, len(encoder.feature_names))
    moved = C.clone()
    moved[:, 0] += 0.5
    changed = (encoder.features(moved, drawn(encoder)) if name != "nam" else _nam_features(encoder, moved)) - (
        features if name != "nam" else _nam_features(encoder, C)
    )
    owners = [index for index, _ in encoder.feature_names]
    reached = changed.abs().amax(0) > 1e-12
    assert [owners[i] in (0, -1) for i in range(len(owners))] == reached.tolist()


def _nam_features(encoder, covariates):
    torch.manual_seed(7)
    return encoder.features(covariates, drawn(encoder))


@pytest.mark.parametrize("name", ["gp", "gp_joint", "linear"])
def test_features_are_centred_on_the_training_cells(name):
    encoder = ENCODERS[name](C)
    torch.testing.assert_close(
        encoder.features(C, {}).mean(0), torch.zeros(len(encoder.feature_names), **DOUBLE), atol=1e-9, rtol=0
    )


def test_nam_functions_are_zero_at_the_mean_of_each_covariate():
    encoder = NAMEncoder(C)
    features = encoder.features(C.mean(0, keepdim=True), drawn(encoder))
    torch.testing.assert_close(features, torch.zeros_like(features))


def test_indicators_are_linear_only():
    encoder = GPEncoder(C)
    names = encoder.feature_names
    assert [name for name in names if name[0] == 2] == [(2, "linear")]
    assert [name for name in names if name[0] == 3] == [(3, "linear")]
    assert [label for j, label in names if j == 0] == ["linear", *(f"sine {i}" for i in range(1, 9))]
    assert GPEncoder(C[:, 2:3]).feature_names == [(0, "linear")]
    assert len(GPJointEncoder(C).feature_names) == len(names) + 150


def test_the_basis_approximates_the_rbf_kernel():
    """Phi Phi^T against exp(-d^2 / (2 0.5^2)) well inside the boundary (Solin and Sarkka, 2020, eq. 22)."""
    encoder = GPEncoder(torch.linspace(-1, 1, 200, **DOUBLE).unsqueeze(-1))
    u = torch.linspace(-0.6, 0.6, 25, **DOUBLE).unsqueeze(-1)
    sines = encoder.raw_features(u)[:, 1:]
    kernel = torch.exp(-((u - u.T) ** 2) / (2 * 0.5**2))
    assert (sines @ sines.T - kernel).abs().max() < 0.04
    other = torch.exp(-((u - u.T) ** 2) / (2 * 0.4**2))
    assert (sines @ sines.T - other).abs().max() > 0.08
    j, boundary = 3, float(encoder.boundary[0])
    frequency = j * math.pi / (2 * boundary)
    density = math.sqrt(2 * math.pi) * 0.5 * math.exp(-0.5 * (0.5 * frequency) ** 2)
    exact = math.sqrt(density / boundary) * torch.sin(frequency * (u[:, 0] + boundary))
    torch.testing.assert_close(sines[:, j - 1], exact)


def test_the_boundary_lies_outside_the_data():
    wide = torch.cat([torch.zeros(50, 1), torch.tensor([[100.0]])]).double() + torch.arange(51)[:, None] / 100
    encoder = GPEncoder(wide)
    reach = float(encoder.scaled(wide).abs().max())
    assert float(encoder.boundary[0]) == pytest.approx(1.15 * reach)
    assert float(GPEncoder(C[:, :1]).boundary[0]) >= 1.6


def test_the_fourier_features_approximate_the_joint_kernel():
    encoder = GPJointEncoder(C[:, :2])
    u = encoder.scaled(C[:, :2])
    joint = encoder.raw_features(u)[:, -150:]
    kernel = torch.exp(-(torch.cdist(u, u) ** 2) / (2 * 0.8**2))
    error = (joint @ joint.T - kernel).abs()
    assert error.mean() < 2 / 150**0.5 * 0.5
    assert error.max() < 5 / 150**0.5
    assert torch.equal(GPJointEncoder(C[:, :2]).fourier_frequency, encoder.fourier_frequency)


def test_logits_follow_the_formula_and_the_prior_of_the_weights():
    """eta = Phi B + b0 with B ~ 1.5 exp(la) Normal(0, 1), as a density of B and over draws."""
    encoder = GPEncoder(C)
    with pyro.plate("draws", 5, dim=-2), poutine.trace() as recorder:
        weights = encoder.weights(K)
    recorder.trace.compute_log_prob()
    B, la = weights["encoder_weights"], recorder.trace.nodes["encoder_log_amplitude"]["value"]
    assert B.shape == (5, 1, len(encoder.feature_names), K)
    exact = dist.Normal(0.0, 1.5 * la.exp()[..., None, None]).log_prob(B).sum((-1, -2))
    torch.testing.assert_close(recorder.trace.nodes["encoder_weights"]["log_prob"], exact)
    phi = encoder.features(C, {})
    eta = torch.einsum("nf,sfk->snk", phi, B[:, 0]) + weights["encoder_bias"]
    torch.testing.assert_close(encoder(C, weights), eta)


def test_hidden_weights_have_their_priors_and_vectorise():
    encoder = NAMEncoder(C)
    with pyro.plate("draws", 4, dim=-2), poutine.trace() as recorder:
        weights = encoder.weights(K)
    assert {n: tuple(weights[n].shape) for n in encoder.hidden} == {
        "encoder_hidden_1": (4, 1, 4, 2, 32), "encoder_hidden_2": (4, 1, 4, 33, 32),
    }  # fmt: skip
    assert float(weights["encoder_hidden_1"].std()) == pytest.approx(1.5, rel=0.1)
    assert float(weights["encoder_hidden_2"].std()) == pytest.approx(32**-0.5, rel=0.05)
    many = encoder(C, weights)
    for i in range(4):
        one = {n: v[i, 0] for n, v in weights.items()}
        torch.testing.assert_close(encoder(C, one), many[i])
    assert set(recorder.trace.nodes) >= {*encoder.hidden, "encoder_weights", "encoder_bias"}


@pytest.mark.parametrize("name", ENCODERS)
def test_precision(name):
    single = ENCODERS[name](C).float()
    weights = drawn(single)
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert single(C.float(), weights).dtype == torch.float32
    double = ENCODERS[name](C)
    found = double(C, {n: w.double() for n, w in weights.items()})
    torch.testing.assert_close(single(C.float(), weights).double(), found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ENCODERS)
def test_settings_and_state_bring_an_encoder_back(name):
    given = ENCODERS[name](C, weight_prior=dist.Laplace(0.0, 0.5), amplitude_prior=dist.Normal(0.1, 0.2))
    settings = json.loads(json.dumps(given.settings()))
    again = Encoder.from_settings(settings)
    again.load_state_dict(given.state_dict())
    assert type(again) is type(given)
    assert again.feature_names == given.feature_names
    weights = drawn(given)
    assert torch.equal(again(C, weights), given(C, weights))
    assert "Laplace" in repr(again.weight_prior)
    assert "Laplace" in NAMED
    assert ENCODERS[name](C, bias_prior=lambda shape: dist.Normal(0.0, 1.0)).settings() is None


def test_unknown_encoders_in_settings():
    settings = {**LinearEncoder(C).settings(), "encoder": "os.system"}
    with pytest.raises(LoadError, match=r"encoder: found 'os.system'"):
        Encoder.from_settings(settings)
