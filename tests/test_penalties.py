"""Penalties in fits, and the invariant risk of the decoder."""

from __future__ import annotations

import copy
import itertools
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from penalty_cells import D, E, P, cells_of, number, seeded, sized, slope_of, some_cells, value_of
from torch import Tensor

from embergraph.datasets import simulated_environments
from embergraph.guides.environment_vae import EnvironmentVAEGuide
from embergraph.guides.parts.cell_encoders import CellEncoder
from embergraph.guides.parts.encoded_cells import EncodedCells
from embergraph.guides.parts.penalties import (
    PENALTIES,
    AdversarialEnvironments,
    InvariantRisk,
    random_halves,
    risk_gradients,
)
from embergraph.inference import svi
from embergraph.models.environment_vae import EnvironmentVAE
from embergraph.models.parts.environment_priors import GatedShifts
from embergraph.models.parts.likelihoods import GaussianLikelihood, NegativeBinomialLikelihood


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def seen_through(likelihood: torch.nn.Module) -> Any:
    return SimpleNamespace(likelihood=likelihood)


@pytest.mark.parametrize(
    "penalty",
    [
        AdversarialEnvironments(E, D, 0.5, hidden=(8, 5), entropy=0.25),
        AdversarialEnvironments(E, D, hidden=(), num_features=2),
        InvariantRisk(30.0),
    ],
    ids=["table", "network", "invariant_risk"],
)
def test_copies_and_round_trips(penalty: Any) -> None:
    penalty = copy.deepcopy(penalty).double()
    cells = some_cells(descriptors=torch.ones(30, 2), weight=2.0)
    model = SimpleNamespace(**vars(sized()), likelihood=GaussianLikelihood(P).double())
    value_of(penalty, model, cells)  # the power iteration moves
    penalty.weight.fill_(0.75)
    settings = json.loads(json.dumps(penalty.settings()))
    rebuilt = PENALTIES[settings["kind"]].from_settings(settings).double()
    assert rebuilt.settings() == penalty.settings()
    rebuilt.load_state_dict(penalty.state_dict())
    for other in (rebuilt, copy.deepcopy(penalty)):
        expected = value_of(copy.deepcopy(penalty).eval(), model, cells)
        torch.testing.assert_close(value_of(other.eval(), model, cells), expected, rtol=0, atol=0)
    assert dict(penalty.named_buffers())["weight"] is penalty.weight
    assert value_of(copy.deepcopy(penalty).float(), model, as_float(cells)).dtype == torch.float32


def as_float(cells: EncodedCells) -> EncodedCells:
    values = {name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
              for name, value in vars(cells).items()}  # fmt: skip
    return EncodedCells(**values)


def slopes_by_hand(cells: EncodedCells, half: Tensor, count: Tensor, scale: float) -> Tensor:
    """-mean <output, x - output> / s^2 of each half."""
    inner = -(cells.output * (cells.expression - cells.output)).sum(-1) / scale**2
    sums = torch.zeros(count.numel()).index_add_(0, half, inner)
    return sums.view_as(count) / count


def test_risk_gradients_of_a_gaussian_in_closed_form() -> None:
    cells, model = some_cells(31), seen_through(GaussianLikelihood(P, initial=0.7).double())
    half, count = seeded(9, random_halves, cells.environment)
    found = seeded(9, risk_gradients, model, cells, cells.output)
    penalty = seeded(9, InvariantRisk(4.0), model, cells)
    scale = number(model.likelihood.scale)
    expected = slopes_by_hand(cells, half, count, scale)
    torch.testing.assert_close(found, expected)
    assert number(penalty) == pytest.approx(4.0 * 31 * float(expected.prod(-1).mean()))


def test_halves_are_of_one_environment_and_random() -> None:
    environment = torch.tensor([5, 2, 2, 5, 2, 2, 5, 9])
    seen = set()
    for seed in range(150):
        half, count = seeded(seed, random_halves, environment)
        assert count.tolist() == [[2, 2], [2, 1], [1, 0]]
        assert torch.equal(half // 2, torch.tensor([1, 0, 0, 1, 0, 0, 1, 2]))
        assert torch.bincount(half, minlength=6).tolist() == count.flatten().tolist()
        seen.add(tuple(half.tolist()))
    assert len(seen) == 18  # choices of 2 of 4, times 2 of 3


@pytest.mark.parametrize("seed", [0, 1])
def test_product_of_halves_is_unbiased_and_the_square_is_not(seed: int) -> None:
    """x = c_e output + noise: the risk gradient is p (1 - c_e)."""
    random = torch.Generator().manual_seed(seed)
    num, slope = 1500, torch.tensor([1.0, 1.3])
    exact = float((P * (1 - slope)).square().mean())
    model, penalty = seen_through(GaussianLikelihood(P, initial=1.0, learned=False).double()), InvariantRisk()
    environment = torch.tensor([0] * 5 + [1] * 5)
    products, squares = [], []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for _ in range(num):
            output = torch.randn(10, P, generator=random)
            x = slope[environment].unsqueeze(-1) * output + torch.randn(10, P, generator=random)
            cells = cells_of(environment, output[:, :D], output, x, weight=0.1)
            products.append(number(penalty(model, cells)))
            inner = -(output * (x - output)).sum(-1).view(2, 5).mean(-1)
            squares.append(float(inner.square().mean()))
    error = torch.tensor(products).std() / math.sqrt(num)
    assert abs(float(torch.tensor(products).mean()) - exact) < 3 * error
    assert float(torch.tensor(squares).mean()) - exact > 10 * error
    assert error < 0.1 * exact


def test_exact_reconstruction_has_no_penalty() -> None:
    cells = some_cells()
    exact = cells_of(cells.environment, cells.z, cells.output, cells.output.clone())
    for seed in range(3):
        assert number(value_of(InvariantRisk(1e4), seen_through(GaussianLikelihood(P).double()), exact, seed)) == 0


@pytest.mark.parametrize("counts", [False, True], ids=["gaussian", "counts"])
def test_gradient_goes_to_the_decoder_and_not_to_the_noise(counts: bool) -> None:
    likelihood = (NegativeBinomialLikelihood if counts else GaussianLikelihood)(P).double()
    cells = some_cells(library=torch.full((30,), 50.0) if counts else None)
    if counts:
        cells.expression = torch.poisson(50 * cells.expression.softmax(-1), torch.Generator().manual_seed(0))
    decoder = torch.nn.Linear(D, P)
    penalty = InvariantRisk(0.5)

    def value() -> Tensor:
        cells.output = decoder(cells.z)
        return value_of(penalty, seen_through(likelihood), cells)

    value().backward()
    assert all(p.grad is None for p in likelihood.parameters())
    for parameter in decoder.parameters():
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        assert parameter.grad is not None
        found = slope_of(value, parameter, direction)
        assert abs(found) > 1e-3
        assert float((parameter.grad * direction).sum()) == pytest.approx(found, rel=1e-5)


def test_batches_that_lack_environments() -> None:
    model, whole = seen_through(GaussianLikelihood(P, initial=1.0).double()), some_cells(9)
    picked = [0, 3, 6, 1]  # three cells of environment 0, a single one of environment 1, none of 2
    some = cells_of(*(t[picked] for t in (whole.environment, whole.z, whole.output, whole.expression)), weight=2.0)
    first = cells_of(
        *(t[picked[:3]] for t in (whole.environment, whole.z, whole.output, whole.expression)), weight=8 / 3
    )
    values = {round(number(value_of(InvariantRisk(), model, some, seed)), 9) for seed in range(20)}
    wanted = {round(number(value_of(InvariantRisk(), model, first, seed)), 9) for seed in range(20)}
    assert values == wanted
    assert len(values) == 3
    alone = cells_of(*(t[:3] for t in (whole.environment, whole.z, whole.output, whole.expression)))
    alone.output.requires_grad_()
    assert number(value_of(InvariantRisk(), model, alone)) == 0
    hidden = AdversarialEnvironments(E, D, hidden=(8,))
    assert math.isfinite(number(value_of(hidden, sized(), some)))


def simulated(seed: int, **options: Any) -> Any:
    return simulated_environments(seed, num_cells=500, **options)


def trained(data: Any, penalties: list[Any], seed: int = 0, num_steps: int = 600, **options: Any) -> Any:
    """Free means of the environments, so that nothing but the penalties chooses a rotation of the latents."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = GatedShifts(E, 2, control=0, gate="none")
        model = EnvironmentVAE.for_data(data, 2, environment_prior=prior)
        guide = EnvironmentVAEGuide.for_model(model, CellEncoder(10, 2, hidden=(), **options), penalties=penalties)
        return svi(model, guide, data, num_steps=num_steps, batch_size=256, learning_rate=0.02, progress=False)


def codes(fit: Any, data: Any) -> tuple[Tensor, Tensor]:
    x, environment = torch.as_tensor(data["expression"].values), torch.as_tensor(data["environment"].values).long()
    with torch.no_grad():
        loc, log_variance = fit.guide.encoder(x.to(next(fit.guide.parameters()).dtype))
        return loc + (0.5 * log_variance).exp() * seeded(0, torch.randn_like, loc), environment


def best_attention(penalty: Any, z: Tensor, environment: Tensor) -> float:
    """Leakage that is left when every environment hides the latent that helps most."""
    left = []
    for targets in itertools.product(range(2), repeat=E):
        with torch.no_grad():
            penalty.attention.table.copy_(1e4 * torch.nn.functional.one_hot(torch.tensor(targets), 2))
        left.append(penalty.leakage(z, environment)["retrained"])
    return min(left)


def test_adversary_gives_every_environment_a_latent_of_its_own() -> None:
    """Without it the rotation is a matter of luck, and no choice of attention hides the environments."""
    without = []
    for seed in (1, 3):  # the first is lucky without it
        data = simulated(seed)
        fit = trained(data, [AdversarialEnvironments(E, 2)], seed)
        penalty = fit.guide.penalties[0]
        found = penalty.leakage(*codes(fit, data))
        assert found["reference"] > 0.8
        assert found["retrained"] < 0.4
        assert found["adversary"] < 0.4
        alpha = penalty.attention.table.softmax(-1)
        assert int(alpha[1].argmax()) != int(alpha[2].argmax())
        without.append(best_attention(penalty, *codes(trained(data, [], seed), data)))
    assert max(without) > 0.5


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson"])
def test_penalties_together_in_a_fit(likelihood: str) -> None:
    torch.set_default_dtype(torch.float32)
    data = simulated(0, likelihood=likelihood)
    data["expression"] = data["expression"].astype("float32")
    fit = trained(data, [InvariantRisk(10.0), AdversarialEnvironments(E, 2, hidden=(8,))], num_steps=3)
    assert math.isfinite(float(fit.history[0, -1]))
    again = EnvironmentVAEGuide.from_settings(json.loads(json.dumps(fit.guide.settings())))
    again.load_state_dict(fit.guide.state_dict())
    assert [type(p) for p in again.penalties] == [InvariantRisk, AdversarialEnvironments]
