"""Adversary on the latents: who gets which gradient, what it can see, and what is rewarded."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from penalty_cells import D, E, number, seeded, sized, slope_of, some_cells, value_of
from torch.nn.functional import cross_entropy

from embergraph.guides.parts.adversary import (
    Attention,
    average_entropy,
    discriminator,
    held_out_accuracy,
    log_shares,
    reverse_gradient,
)
from embergraph.guides.parts.penalties import (
    AdversarialEnvironments,
    mix,
)
from embergraph.models.parts.errors import DataError


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def adversary(**options: Any) -> AdversarialEnvironments:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        penalty = AdversarialEnvironments(E, D, **{"hidden": (8,), **options}).eval()
        if penalty.attention.table is not None:
            torch.nn.init.normal_(penalty.attention.table)
        return penalty


def test_reversed_gradient() -> None:
    a = torch.tensor([1.0, -2.0], requires_grad=True)
    kept = reverse_gradient(a, torch.tensor(3.0))
    assert torch.equal(kept, a)
    kept.square().sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, -6 * a.detach())


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_players_move_in_opposite_directions(weight: float) -> None:
    """The value is what encoder and attention minimise; the discriminator maximises it, at its own scale."""
    penalty, cells = adversary(weight=weight, entropy=0.3), some_cells(weight=7.0)
    cells.z.requires_grad_()
    value_of(penalty, sized(), cells).backward()
    table, first = penalty.attention.table, penalty.discriminator[0].parametrizations.weight.original
    assert table is not None
    random = torch.Generator().manual_seed(3)
    for tensor, factor in (
        (cells.z, 1.0),
        (table, 1.0),
        (first, -1 / weight),
        (penalty.discriminator[2].bias, -1 / weight),
    ):
        direction = torch.randn(tensor.shape, generator=random)
        found = slope_of(lambda: value_of(penalty, sized(), cells), tensor, direction)
        assert abs(found) > 1e-4
        assert float((tensor.grad * direction).sum()) == pytest.approx(factor * found, rel=1e-5)


def test_discriminator_learns_while_the_weight_is_zero() -> None:
    penalty, cells = adversary(weight=0.0), some_cells()
    cells.z.requires_grad_()
    value = value_of(penalty, sized(), cells)
    value.backward()
    assert number(value) == 0
    assert cells.z.grad is not None
    assert cells.z.grad.abs().max() == 0
    assert penalty.discriminator[2].bias.grad.abs().max() > 0.01


def test_value_is_a_bound_of_the_information() -> None:
    penalty, cells = adversary(weight=2.0, entropy=0.25), some_cells(weight=3.0)
    with torch.no_grad():
        found = value_of(penalty, sized(), cells)
        noise = seeded(5, torch.randn_like, cells.z)
        mixed = penalty.counterfactual(cells.z, cells.environment, noise=noise)
        surprise = cross_entropy(penalty.discriminator(mixed), cells.environment)
        alpha = penalty.attention.table.softmax(-1).mean(0)  # three environments of ten cells each
        entropy = min(float(-(alpha * alpha.log()).sum()), math.log(E))
    assert float(found) == pytest.approx(2.0 * 90 * (math.log(E) - float(surprise) - 0.25 * entropy))


def test_value_does_not_depend_on_the_size_of_the_batch() -> None:
    penalty, whole = adversary(), some_cells(30_000)
    part = some_cells(3000, seed=1, weight=10.0)
    with torch.no_grad():
        a, b = value_of(penalty, sized(), whole), value_of(penalty, sized(), part)
    assert number(a) == pytest.approx(number(b), abs=0.01 * 30_000)


def test_shares_in_logarithms() -> None:
    logits = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    log_alpha, log_rest = log_shares(logits)
    torch.testing.assert_close(log_alpha.exp(), logits.softmax(-1))
    torch.testing.assert_close(log_rest.exp(), 1 - logits.softmax(-1))
    assert torch.autograd.gradcheck(lambda a: torch.cat(log_shares(a), -1), logits.requires_grad_())


def test_attention_that_is_as_good_as_certain_has_finite_gradients() -> None:
    logits = torch.tensor([[0.0, 900.0, 0.0], [50.0, 0.0, -2000.0]], requires_grad=True)
    z = torch.ones(2, 3, requires_grad=True)
    mixed = mix(z, torch.full((2, 3), 5.0), *log_shares(logits))
    torch.testing.assert_close(mixed, torch.tensor([[1.0, 5.0, 1.0], [5.0, 1.0, 1.0]]))
    entropy, _ = average_entropy(log_shares(logits)[0], torch.arange(2))
    (mixed.sum() + entropy).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("targets", "wanted"), [([0, 0, 0], 0.0), ([0, 1, 2], math.log(3)), ([0, 0, 1], math.log(3) - 2 / 3 * math.log(2))]
)
def test_entropy_of_the_average_attention(targets: list[int], wanted: float) -> None:
    """Of environments, not of cells: the first environment has most of these."""
    environment = torch.tensor([0] * 50 + [1, 2, 2])
    log_alpha, _ = log_shares(1e4 * torch.nn.functional.one_hot(torch.tensor(targets), D).double()[environment])
    entropy, count = average_entropy(log_alpha, environment)
    assert count == 3
    assert float(entropy) == pytest.approx(wanted, abs=1e-12)


def test_equal_shares_have_the_largest_entropy_and_no_more_than_one_latent_each_is_rewarded() -> None:
    environment = torch.arange(30) % E
    log_alpha, _ = Attention(E, D)(environment)
    assert number(average_entropy(log_alpha, environment)[0]) == pytest.approx(math.log(D))
    penalty, cells = AdversarialEnvironments(E, D, entropy=1.0, hidden=(8,)).eval(), some_cells()
    without = AdversarialEnvironments.from_settings({**penalty.settings(), "entropy": 0.0}).eval()
    without.load_state_dict(penalty.state_dict())
    difference = value_of(without, sized(), cells) - value_of(penalty, sized(), cells)
    assert number(difference) == pytest.approx(30 * math.log(E))


def test_attention_of_the_control_is_not_rewarded() -> None:
    penalty, cells = adversary(entropy=1.0), some_cells()
    table = penalty.attention.table
    assert table is not None
    with torch.no_grad():
        table.copy_(1e4 * torch.nn.functional.one_hot(torch.tensor([0, 1, 1]), D))
    with_control, without = (value_of(penalty, sized(control=row), cells) for row in (0, None))
    assert number(with_control - without) == pytest.approx(30 * (math.log(3) - 2 / 3 * math.log(2)))


def test_batch_of_the_control_alone() -> None:
    penalty, cells = adversary(weight=1.0), some_cells()
    cells.environment = torch.zeros_like(cells.environment)
    value = value_of(penalty, sized(control=0), cells)
    value.backward()
    assert number(value) < 0  # nothing to know, and a discriminator that is wrong at times
    assert all(p.grad is None or p.grad.isfinite().all() for p in penalty.parameters())


def test_attending_to_what_carries_the_environment_hides_it() -> None:
    random = torch.Generator().manual_seed(0)
    environment = torch.arange(3000) % E
    z = torch.randn(3000, D, generator=random)
    targets = torch.tensor([0, 1, 2])
    z[torch.arange(3000), targets[environment]] += 3.0
    penalty = adversary()
    with torch.no_grad():
        penalty.attention.table.copy_(1e4 * torch.nn.functional.one_hot(targets, D))
        hidden = penalty.leakage(z, environment)
        penalty.attention.table.copy_(1e4 * torch.nn.functional.one_hot(targets.roll(1), D))
        wrong = penalty.leakage(z, environment)
    assert hidden["chance"] == pytest.approx(1 / 3)
    assert hidden["reference"] > 0.9
    assert hidden["retrained"] < 0.37
    assert hidden["adversary"] < 0.37
    assert wrong["retrained"] > 0.8


@pytest.mark.parametrize("seed", [0, 1])
def test_variance_gives_linear_weights_away_and_not_their_roots(seed: int) -> None:
    """There is nothing to find in these latents but the weights."""
    random = torch.Generator().manual_seed(seed)
    environment = torch.arange(6000) % E
    z, noise = torch.randn(2, 6000, D, generator=random)
    logits = torch.tensor([[0.0, 0, -9, -9], [-9, 0, 0, -9], [-9, -9, 0, 0]])
    log_alpha, log_rest = log_shares(logits[environment])
    rooted = mix(z, noise, log_alpha, log_rest)
    published = log_alpha.exp() * noise + log_rest.exp() * z
    assert float(rooted.var(0).sub(1).abs().max()) < 0.1
    assert held_out_accuracy(rooted, environment, seed) < 0.36
    assert held_out_accuracy(published, environment, seed) > 0.42


def test_leakage_leaves_everything_as_it_was() -> None:
    penalty, cells = adversary().train(), some_cells(60)
    before, state = copy.deepcopy(penalty.state_dict()), torch.random.get_rng_state()
    first = penalty.leakage(cells.z, cells.environment, seed=4)
    assert first == penalty.leakage(cells.z, cells.environment, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert penalty.discriminator.training
    assert all(torch.equal(before[name], value) for name, value in penalty.state_dict().items())


def test_single_cells_of_environments_are_no_evidence() -> None:
    z = torch.randn(41, 2, generator=torch.Generator().manual_seed(0))
    environment = torch.tensor([0] * 20 + [1] * 20 + [7])
    assert held_out_accuracy(z, environment) <= 1
    with pytest.raises(DataError, match="environment: found 2, 1 of two cells; wanted at least two"):
        held_out_accuracy(z[20:], environment[20:])


def test_discriminator_is_one_lipschitz() -> None:
    network = seeded(0, discriminator, D, E, (16, 16))
    with torch.no_grad():
        for layer in network[::2]:
            layer.parametrizations.weight.original.mul_(30.0)
        for _ in range(300):
            network(torch.zeros(1, D))
        a, b = torch.randn(2, 500, D, generator=torch.Generator().manual_seed(0))
        ratio = (network(a) - network(b)).norm(dim=-1) / (a - b).norm(dim=-1)
    assert float(ratio.max()) <= 1 + 1e-6
    assert float(ratio.max()) > 0.1


def test_attention_by_descriptors() -> None:
    penalty = adversary(num_features=2)
    u_e = torch.randn(E, 2, generator=torch.Generator().manual_seed(0))
    cells = some_cells(descriptors=u_e[torch.arange(30) % E])
    value_of(penalty, sized(), cells).backward()
    assert penalty.attention.network is not None
    assert penalty.attention.network[-1].weight.grad.abs().max() > 0
    assert set(penalty.leakage(cells.z, cells.environment, cells.descriptors)) == {
        "chance", "adversary", "retrained", "reference"
    }  # fmt: skip
    with pytest.raises(DataError, match="descriptors: found none; wanted 2 features"):
        penalty(sized(), some_cells())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight: found -1.0"),
        ({"weight": math.nan}, "weight: found nan"),
        ({"entropy": -0.1}, "entropy: found -0.1"),
        ({"num_latents": 1}, "num_latents: found 1; wanted at least 2"),
        ({"num_environments": 1}, "num_environments: found 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        AdversarialEnvironments(**{"num_environments": E, "num_latents": D, **options})


def test_another_model() -> None:
    with pytest.raises(DataError, match=r"adversary: found sizes \(3, 4\); wanted \(5, 4\)"):
        adversary()(sized(num_environments=5), some_cells())
