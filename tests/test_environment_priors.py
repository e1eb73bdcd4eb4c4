"""Priors of environments: laws, control, draws, densities, settings."""

from __future__ import annotations

import json
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from embergraph.models.parts.environment_priors import (
    ENVIRONMENT_PRIORS,
    DescriptorShifts,
    EnvironmentPrior,
    GatedShifts,
    MaskedShifts,
    SingleEffects,
    SpikeSlabShifts,
    StandardPrior,
)
from embergraph.models.parts.errors import DataError, SchemaError
from embergraph.models.parts.shift_priors import indicators

E, D, F = 4, 3, 2
MAKE: dict[str, Any] = {
    "standard": StandardPrior,
    "gated": GatedShifts,
    "gated scales": lambda *a: GatedShifts(*a, gate="entmax15", scales=True),
    "gated network": lambda *a: GatedShifts(*a, num_features=F, hidden=(5,), scales=True),
    "single": lambda *a: SingleEffects(*a, max_targets=2),
    "spike": SpikeSlabShifts,
    "masked": MaskedShifts,
    "dense": lambda *a: DescriptorShifts(*a, num_features=F),
    "sparse": lambda *a: DescriptorShifts(*a, num_features=F, sparse=True),
}


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def shaken(prior: EnvironmentPrior) -> EnvironmentPrior:
    """Parameters away from their starting values."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    return prior


def features(rows: int = E, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, F, dtype=dtype)


@pytest.mark.parametrize("name", sorted(MAKE))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_declared_shapes(name: str, dtype: torch.dtype) -> None:
    prior, u = shaken(MAKE[name](E, D, 1).to(dtype)), features(dtype=dtype)
    lengths = {"condition": E, "latent": D, "effect": 2}
    for outer in ((), (3, 1)):
        with poutine.trace() as recorder, pyro.plate("_draws", 3, dim=-2) if outer else poutine.block():
            law = prior(u)
        if not outer:
            recorder = poutine.trace(prior)
            recorder.get_trace(u)
        sites = {n: s for n, s in recorder.trace.nodes.items() if s["type"] == "sample" and n != "_draws"}
        assert {n: tuple(s["value"].shape) for n, s in sites.items()} == {
            n: outer + tuple(lengths[dim] for dim in dims) for n, dims in prior.site_dims.items()
        }
        drawn = outer if prior.site_dims else ()
        assert law.mean.shape == (*drawn, E, D)
        assert law.mean.dtype == dtype
        assert not law.mean[..., 1, :].any()
        for other in (law.log_scale, law.is_target):
            assert other is None or (other.shape == law.mean.shape and not other[..., 1, :].any())
        if law.is_target is not None:
            assert bool(((law.is_target == 0) | (law.is_target == 1)).all())
            assert not law.mean[law.is_target == 0].any()
        for site in sites.values():
            assert bool(torch.as_tensor(site["fn"].log_prob(site["value"])).isfinite().all())


@pytest.mark.parametrize("name", ["single", "spike", "masked", "sparse"])
def test_control_carries_no_density(name: str) -> None:
    """Density of targets is the same whether the last environment is a control or is not there."""
    prior, u = shaken(MAKE[name](E, D, E - 1).double()), features(dtype=torch.double)
    shorter = MAKE[name](E - 1, D).double()
    state = {k: v[: E - 1] if k == "size" else v for k, v in prior.state_dict().items()}
    shorter.load_state_dict(state)
    trace = poutine.trace(prior).get_trace(u)
    values = {n: trace.nodes[n]["value"] for n in prior.site_dims}
    cut = {n: v[: E - 1] if "condition" in prior.site_dims[n] else v for n, v in values.items()}
    other = poutine.trace(poutine.condition(shorter, data=cut)).get_trace(u[: E - 1])
    trace.compute_log_prob()
    other.compute_log_prob()
    for n in {"target", "is_target", "target_rate"} & set(prior.site_dims):
        full, part = (float(t.nodes[n]["log_prob_sum"].detach()) for t in (trace, other))
        assert full == pytest.approx(part, abs=1e-10)


def test_control_carries_no_density_in_single_precision_either() -> None:
    """Exactly none: log(1 - 0) of clamped probabilities is 1e-7 off for every latent."""
    law = indicators(torch.full((2, 300), 0.5), torch.tensor([[0.0], [1.0]]))
    value = torch.zeros(2, 300)
    assert float(law.log_prob(value)) == pytest.approx(-300 * math.log(2), rel=1e-6)
    assert float(indicators(torch.full((2, 300), 0.5), torch.zeros(2, 1)).log_prob(value)) == 0.0


def test_single_effects_follow_their_law() -> None:
    """Frequencies of targets, variance of shifts and number of targets against the stated law."""
    prior = SingleEffects(2, D, max_targets=2).double()
    values = {"shift_variance": torch.tensor(4.0).double(), "null_probability": torch.tensor([0.5, 0.2]).double()}
    n = 60_000
    with pyro.plate("draws", n, dim=-2):
        law = poutine.condition(prior, data={k: v.expand(n, 1, *v.shape) for k, v in values.items()})(None)
    assert law.is_target is not None
    chance = 1 - (1 - 0.5 / D) * (1 - 0.8 / D)
    assert float(law.is_target.mean()) == pytest.approx(chance, abs=0.005)
    assert float(law.mean.var()) == pytest.approx(4.0 * (0.5 + 0.8) / D, rel=0.02)
    assert int(law.is_target.sum(-1).max()) == 2
    assert float((law.is_target.sum(-1) == 0).double().mean()) == pytest.approx(0.1, abs=0.005)


def test_effects_on_one_latent_add_up() -> None:
    prior = SingleEffects(1, D, max_targets=3)
    law = prior.law(torch.tensor([[2, 0, 2]]), torch.tensor([[1.0, 5.0, -0.25]]))
    assert law.mean.tolist() == [[0.0, 0.75, 0.0]]
    assert law.is_target is not None
    assert law.is_target.tolist() == [[0.0, 1.0, 0.0]]


def test_masked_shifts_start_as_published() -> None:
    prior = MaskedShifts(200, 50)
    size = prior.size.detach()
    assert float(size.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(size.std()) == pytest.approx(1.0, abs=0.02)
    trace = poutine.trace(prior).get_trace()
    assert float(trace.nodes["target_rate"]["value"].mean()) == pytest.approx(1 / 21, abs=0.003)
    with pytest.raises(DataError, match=r"sparsity: found 0\.5"):
        MaskedShifts(E, D, sparsity=0.5)


@pytest.mark.parametrize("gate", ["softmax", "sparsemax", "entmax15", "none"])
def test_one_weight_gates_location_and_scale(gate: str) -> None:
    """Whatever the scores of the log scale: its ratio to its ungated value is that of the location."""
    prior = shaken(GatedShifts(E, D, gate=gate, scales=True).double())
    prior.temperature.fill_(0.3)
    law = prior()
    a, b = prior.values.split(D, -1)
    assert law.log_scale is not None
    torch.testing.assert_close(law.log_scale / b, law.mean / a)


def test_evaluation_leaves_the_temperature_alone() -> None:
    prior = GatedShifts(E, D)
    before = float(prior.temperature)
    for _ in range(5):
        prior()
    assert float(prior.temperature) == before == 1.0
    assert "temperature" in prior.state_dict()


def test_log_scales_are_bounded() -> None:
    prior = GatedShifts(E, D, gate="none", scales=True)
    with torch.no_grad():
        prior.values.fill_(1e6)
    law = prior()
    assert law.log_scale is not None
    assert float(law.log_scale.detach().exp().max()) < 10


@pytest.mark.parametrize("name", ["gated network", "dense", "sparse"])
def test_new_environments_by_descriptor(name: str) -> None:
    """Means follow descriptors, whatever the number of rows; `new` has no control."""
    prior = shaken(MAKE[name](E, D, 0))
    assert prior.uses_descriptors
    u = features(7)
    data = {"shift_variance": torch.tensor(1e-12)} if name == "sparse" else {}
    assert prior(u).mean.shape == (7, D)
    with poutine.condition(data=data):
        many, few, trained = prior.new(u).mean, prior.new(u[:E]).mean, prior(u[:E]).mean
    assert not trained[0].any()
    if name != "sparse":
        torch.testing.assert_close(few, many[:E])
        torch.testing.assert_close(trained[1:], many[1:E])
        assert few[0].all()


def test_descriptors_are_checked() -> None:
    prior = DescriptorShifts(E, D, num_features=F)
    with pytest.raises(SchemaError, match="descriptors: found none"):
        prior()
    with pytest.raises(SchemaError, match=r"descriptors: found \(4, 5\); wanted \(condition, 2\)"):
        prior(torch.zeros(E, 5))
    for made in (StandardPrior(E, D), GatedShifts(E, D), SingleEffects(E, D)):
        assert not made.uses_descriptors
        with pytest.raises(SchemaError, match="new environments"):
            made.new(features())


def test_networks_start_small_and_with_a_quarter_of_targets() -> None:
    u = features(500)
    prior = DescriptorShifts(500, D, num_features=F, sparse=True)
    assert float(prior.location(u).detach().abs().max()) < 0.2
    assert float(prior.logit(u).detach().sigmoid().mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StandardPrior(0, D),
        lambda: StandardPrior(E, 0),
        lambda: StandardPrior(E, D, E),
        lambda: StandardPrior(E, D, "DMSO"),  # type: ignore[arg-type]
        lambda: SingleEffects(E, D, max_targets=0),
        lambda: SingleEffects(E, D, variance_prior=dist.Normal(0.0, 1.0)),
        lambda: GatedShifts(E, D, gate="hard"),
        lambda: DescriptorShifts(E, D, num_features=0),
    ],
)
def test_unusable_options(make: Any) -> None:
    with pytest.raises(DataError, match="found .*; wanted"):
        make()


@pytest.mark.parametrize("name", sorted(MAKE))
def test_settings_and_state_restore_the_prior(name: str) -> None:
    prior, u = shaken(MAKE[name](E, D, 2).double()), features(dtype=torch.double)
    settings = json.loads(json.dumps(prior.settings()))
    restored = ENVIRONMENT_PRIORS[settings["kind"]].from_settings(settings).double()
    restored.load_state_dict(prior.state_dict())
    assert restored.settings() == prior.settings()
    laws = []
    for made in (prior, restored):
        torch.manual_seed(5)
        laws.append(made(u).mean)
    assert laws[0].equal(laws[1])


def test_own_priors_are_kept_and_hierarchies_have_no_settings() -> None:
    prior = SingleEffects(
        E, D, max_targets=2, null_prior=dist.Beta(3.0, 5.0), variance_prior=dist.InverseGamma(2.0, 1.0)
    )
    settings = prior.settings()
    assert settings is not None
    made = SingleEffects.from_settings(settings)
    assert isinstance(made, SingleEffects)
    value = torch.tensor([0.3, 0.4])
    wanted = dist.Beta(3.0, 5.0).log_prob(value).sum()
    assert float(made.null_prior.expand((2,)).log_prob(value)) == pytest.approx(float(wanted))
    shared = SpikeSlabShifts(E, D, rate_prior=lambda shape: dist.Beta(1.0, pyro.sample("K", dist.Gamma(2.0, 1.0))))
    assert shared.settings() is None
    assert shared().mean.shape == (E, D)


def test_density_of_single_effects() -> None:
    prior = SingleEffects(2, D, control=0, max_targets=1).double()
    values = {
        "shift_variance": torch.tensor(4.0).double(),
        "null_probability": torch.tensor([0.4], dtype=torch.double),
        "target": torch.tensor([[0], [2]]),
        "size": torch.tensor([[1.0], [3.0]]).double(),
    }
    trace = poutine.trace(poutine.condition(prior, data=values)).get_trace()
    normal = sum(-(x**2) / 8 - math.log(2) - 0.5 * math.log(2 * math.pi) for x in (1.0, 3.0))
    beta = math.log(6 * 0.4 * 0.6)
    gamma = float(dist.InverseGamma(torch.tensor(0.5).double(), 13.5).log_prob(torch.tensor(4.0).double()))
    assert float(trace.log_prob_sum()) == pytest.approx(normal + beta + gamma + math.log(0.6 / D), abs=1e-9)
