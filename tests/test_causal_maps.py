"""Causal maps: what they compute, and which graphs noise and hard interventions can tell apart."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from embergraph.models.parts.causal_maps import CAUSAL_MAPS, AutoregressiveMap, CausalMap, LinearMap
from embergraph.models.parts.decoders import LinearDecoder
from embergraph.models.parts.errors import DataError, LoadError

NOISE = 0.3  # variance of expression around the decoder's output


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def made(cls: type[CausalMap], d: int = 4) -> CausalMap:
    causal_map = cls(d).double()
    for parameter in causal_map.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return causal_map


def by_hand(causal_map: CausalMap, z: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """The definition, cell by cell and latent by latent."""
    numbers = {name: value.detach().numpy() for name, value in causal_map.named_parameters()}
    c = np.zeros_like(z)
    for i, k in np.ndindex(*z.shape):
        effect = 0.0
        if k > 0 and isinstance(causal_map, LinearMap):
            effect = numbers["weight"][k, :k] @ c[i, :k]
        elif k > 0:
            units = numbers["input_weight"][k, :, :k] @ c[i, :k] + numbers["input_bias"][k]
            effect = numbers["output_weight"][k] @ np.maximum(units, 0)
        c[i, k] = z[i, k] + (1 - cut[i, k]) * effect
    return c


@pytest.mark.parametrize("cls", CAUSAL_MAPS.values())
def test_maps_follow_their_definition_and_the_cut_works_row_by_row(cls):
    causal_map, z = made(cls), torch.randn(20, 4, dtype=torch.double)
    cut = torch.randint(0, 2, z.shape).double()
    for each in (torch.zeros_like(cut), cut, 0.3 * cut):
        np.testing.assert_allclose(causal_map(z, each).detach(), by_hand(causal_map, z.numpy(), each.numpy()))
    np.testing.assert_allclose(causal_map(z).detach(), by_hand(causal_map, z.numpy(), np.zeros((20, 4))))
    assert not torch.allclose(causal_map(z, cut), causal_map(z))
    assert torch.equal(causal_map(z, torch.ones_like(z)), z)
    draws = causal_map(z.expand(2, 3, 20, 4), cut)
    torch.testing.assert_close(draws[1, 2], causal_map(z, cut))
    torch.testing.assert_close(causal_map(z, cut[:1]), causal_map(z, cut[:1].expand(20, 4)))


def test_linear_closed_form():
    causal_map, z = made(LinearMap), torch.randn(20, 4, dtype=torch.double)
    effects = causal_map.effects
    assert torch.equal(effects, effects.tril(-1))
    solved = torch.linalg.solve(torch.eye(4, dtype=torch.double) - effects, z.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(causal_map(z), solved)
    torch.testing.assert_close(causal_map(z), causal_map(z, torch.zeros_like(z)))
    by_solution = torch.autograd.grad(causal_map(z).square().sum(), causal_map.weight)[0]
    in_turn = torch.autograd.grad(causal_map(z, torch.zeros_like(z)).square().sum(), causal_map.weight)[0]
    torch.testing.assert_close(by_solution, in_turn)
    assert torch.equal(by_solution.triu(), torch.zeros(4, 4, dtype=torch.double))


@pytest.mark.parametrize("cls", CAUSAL_MAPS.values())
def test_order_and_start(cls):
    fresh, z = cls(4), torch.randn(7, 4)
    assert torch.equal(fresh(z), z)
    fresh(z).pow(3).sum().backward()
    assert any((parameter.grad != 0).any() for parameter in fresh.parameters())  # from where it can move
    causal_map, cut = made(cls), torch.tensor([0.0, 0.0, 1.0, 0.0]).double()
    slopes = torch.autograd.functional.jacobian(lambda v: causal_map(v, cut), torch.randn(4, dtype=torch.double))
    assert torch.equal(slopes, slopes.tril())
    assert torch.equal(slopes.diagonal(), torch.ones(4).double())
    assert torch.equal(slopes[2], torch.eye(4).double()[2])
    assert (slopes[3, :3] != 0).any()
    assert torch.equal(cls(1)(z[:, :1]), z[:, :1])


@pytest.mark.parametrize("cls", CAUSAL_MAPS.values())
def test_settings_and_state_rebuild_a_map(cls):
    causal_map, z = made(cls), torch.randn(5, 4, dtype=torch.double)
    again = CausalMap.from_settings(json.loads(json.dumps(causal_map.settings()))).double()
    again.load_state_dict(causal_map.state_dict())
    assert type(again) is cls
    assert torch.equal(again(z), causal_map(z))


def test_what_is_refused():
    with pytest.raises(LoadError, match="causal_map: found 'cyclic'; wanted one of"):
        CausalMap.from_settings({"kind": "cyclic"})
    for wrong, message in (
        (lambda: LinearMap(0), "num_latents: found 0"),
        (lambda: AutoregressiveMap(2, 0), "hidden:"),
    ):
        with pytest.raises(DataError, match=f"^{message}"):
            wrong()


# Which graphs the law of expression determines. z ~ Normal(mean_e, variance_e), c = map(z), x = c W + noise.


def covariance(directions: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Covariance of expression, for what a unit of each cause does to the genes."""
    return directions.mT @ (variance.unsqueeze(-1) * directions) + NOISE * torch.eye(directions.shape[-1]).double()


def test_noise_interventions_cannot_tell_a_map_from_a_decoder_after_it_and_hard_ones_can():
    d, p = 3, 6
    causal_map, decoder, merged = made(LinearMap, d), LinearDecoder(d, p).double(), LinearDecoder(d, p).double()
    with torch.no_grad():
        merged.weight.copy_(causal_map(torch.eye(d).double()) @ decoder.weight)
        merged.bias.copy_(decoder.bias)
    for target in range(d):
        cut, mean, variance = torch.zeros(d).double(), torch.zeros(d).double(), torch.ones(d).double()
        mean[target], variance[target] = 2.0, 3.0
        laws = [covariance(causal_map(torch.eye(d).double()) @ decoder.weight, variance)]
        torch.testing.assert_close(decoder(causal_map(mean)), merged(mean))
        torch.testing.assert_close(laws[0], covariance(merged.weight, variance))
        cut[target] = 1
        hard = covariance(causal_map(torch.eye(d).double(), cut) @ decoder.weight, variance)
        assert ((hard - laws[0]).abs().max() > 0.05) == (target > 0)  # the first has no edges to cut


def divergence(wanted: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of zero-mean Gaussian laws: what a cell loses in expected log likelihood."""
    ratio = torch.linalg.solve(model, wanted)
    return 0.5 * (ratio.diagonal(dim1=-2, dim2=-1).sum(-1) - torch.linalg.slogdet(ratio).logabsdet - wanted.shape[-1])


def environments(
    causal_map: LinearMap, weight: torch.Tensor, variance: torch.Tensor, hard: bool, reverse: bool
) -> torch.Tensor:
    """Covariances of expression: untouched cells, then one intervention on each latent, which changes its variance."""
    d = causal_map.num_latents
    each = []
    for target in range(-1, d):
        cut, changed = torch.zeros(d).double(), torch.ones(d).double()
        if target >= 0:
            cut[target] = float(hard)
            changed = torch.where(torch.arange(d) == target, variance[target], changed)
        causes = torch.eye(d).double()
        if reverse:  # the order of the causes from last to first
            c = causal_map(causes.flip(-1), cut.flip(-1)).flip(-1)
        else:
            c = causal_map(causes, cut)
        each.append(covariance(c @ weight, changed))
    return torch.stack(each)


def best_fit(wanted: torch.Tensor, start: torch.Tensor, hard: bool, reverse: bool) -> float:
    """Smallest total divergence over all edge weights, mixings and variances under intervention."""
    best, d = float("inf"), len(start)
    for seed in range(4):  # from mixings ever farther from the true one
        torch.manual_seed(seed)
        causal_map, weight = LinearMap(d).double(), start + 0.3 * (1 + seed) * torch.randn(start.shape).double()
        weight.requires_grad_()
        log_variance = torch.zeros(d).double().requires_grad_()
        parameters = [causal_map.weight, weight, log_variance]
        optimiser = torch.optim.LBFGS(
            parameters, max_iter=600, tolerance_grad=1e-9, tolerance_change=1e-13, line_search_fn="strong_wolfe"
        )

        def loss(causal_map=causal_map, weight=weight, log_variance=log_variance) -> torch.Tensor:
            return divergence(wanted, environments(causal_map, weight, log_variance.exp(), hard, reverse)).sum()

        def closure(optimiser=optimiser, loss: Callable[[], torch.Tensor] = loss) -> torch.Tensor:
            optimiser.zero_grad()
            value = loss()
            value.backward()
            return value

        optimiser.step(closure)
        best = min(best, loss().item())
        if best < 1e-8:
            break
    return best


@pytest.mark.parametrize("d", [2, 3])
def test_hard_interventions_on_every_latent_tell_the_graph_from_the_reversed_one_and_noise_does_not(d):
    torch.manual_seed(7)
    truth, weight = LinearMap(d).double(), torch.randn(d, 5).double()
    with torch.no_grad():
        truth.weight.copy_(torch.diag(torch.ones(d - 1), -1))  # a chain
    variance = torch.full((d,), 3.0).double()
    with torch.no_grad():
        hard = environments(truth, weight, variance, hard=True, reverse=False)
        noise = environments(truth, weight, variance, hard=False, reverse=False)
    assert best_fit(hard, weight, hard=True, reverse=False) < 1e-6
    assert best_fit(hard, weight, hard=True, reverse=True) > 0.01
    assert best_fit(noise, weight, hard=False, reverse=False) < 1e-6
    assert best_fit(noise, weight, hard=False, reverse=True) < 1e-6
