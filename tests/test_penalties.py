"""Penalties: adversary on the latents, and invariant risk of the decoder."""

from __future__ import annotations

import copy
import itertools
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from embergraph.datasets import simulated_environments
from embergraph.guides.environment_vae import EnvironmentVAEGuide
from embergraph.guides.parts.adversary import (
    Attention,
    average_entropy,
    discriminator,
    held_out_accuracy,
    log_shares,
    reverse_gradient,
)
from embergraph.guides.parts.cell_encoders import CellEncoder
from embergraph.guides.parts.encoded_cells import EncodedCells
from embergraph.guides.parts.penalties import (
    PENALTIES,
    AdversarialEnvironments,
    InvariantRisk,
    mix,
    random_halves,
    risk_gradients,
)
from embergraph.inference import svi
from embergraph.models.environment_vae import EnvironmentVAE
from embergraph.models.parts.environment_priors import GatedShifts
from embergraph.models.parts.errors import DataError
from embergraph.models.parts.likelihoods import GaussianLikelihood, NegativeBinomialLikelihood
from torch import Tensor
from torch.nn.functional import cross_entropy

E, D, P = 3, 4, 6


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def cells_of(
    environment: Tensor, z: Tensor, output: Tensor, x: Tensor, *, weight: float = 1.0, **options: Any
) -> EncodedCells:
    values = {"library": None, "descriptors": None, **options}
    return EncodedCells(
        x, environment, loc=z, log_variance=torch.zeros_like(z), z=z, output=output, weight=weight, **values
    )


def some_cells(num: int = 30, *, seed: int = 0, **options: Any) -> EncodedCells:
    random = torch.Generator().manual_seed(seed)
    environment = torch.arange(num) % E
    draws = [torch.randn(num, k, generator=random) for k in (D, P, P)]
    return cells_of(environment, *draws, **options)


def sized(num_environments: int = E, num_latents: int = D, control: int | None = None) -> Any:
    return SimpleNamespace(num_environments=num_environments, num_latents=num_latents, control=control)


def seen_through(likelihood: torch.nn.Module) -> Any:
    return SimpleNamespace(likelihood=likelihood)


def adversary(**options: Any) -> AdversarialEnvironments:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        penalty = AdversarialEnvironments(E, D, **{"hidden": (8,), **options}).eval()
        if penalty.attention.table is not None:
            torch.nn.init.normal_(penalty.attention.table)
        return penalty


def seeded(seed: int, function: Any, *arguments: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return function(*arguments)


def value_of(penalty: torch.nn.Module, model: Any, cells: EncodedCells, seed: int = 5) -> Tensor:
    return seeded(seed, penalty, model, cells)


def number(value: Tensor) -> float:
    return float(value.detach())


def slope_of(value: Any, tensor: Tensor, direction: Tensor, step: float = 1e-5) -> float:
    """Central difference of `value()` as `tensor` moves."""
    with torch.no_grad():
        start = tensor.clone()
        ends = []
        for sign in (1, -1):
            tensor.copy_(start + sign * step * direction)
            ends.append(number(value()))
        tensor.copy_(start)
    return (ends[0] - ends[1]) / (2 * step)


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
    assert math.isfinite(number(value_of(adversary(), sized(), some)))


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
    for seed in (0, 1):
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
