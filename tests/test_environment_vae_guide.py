import copy

import pyro
import pytest
import torch
from environment_fits import counts, guide_of, pair, two_latents
from pyro import poutine

from embergraph.guides.environment_vae import EnvironmentVAEGuide, Stages
from embergraph.guides.parts.environment_posteriors import EnvironmentStatistics
from embergraph.inference.messengers import Supply
from embergraph.inference.sampler import Sampler
from embergraph.models import (
    EnvironmentVAE,
    GatedShifts,
    SingleEffects,
    basic_vae,
    conditional_vae,
    gated_environment_vae,
    svae_plus,
    translation_vae,
)
from embergraph.models.parts.errors import DataError


@pytest.fixture(scope="module")
def real():
    return two_latents(num_cells=20)


@pytest.fixture(scope="module")
def umi():
    return counts(control=True)


def elbo_by_draws(model, guide, inputs, num_draws):
    """Mean and standard error of log p - log q over draws of everything, as Pyro counts it."""
    sampler = Sampler(model, guide, inputs)
    torch.manual_seed(1)
    values, log_q = sampler.guide_values(num_draws)
    log_p = sampler.model_pass(values, num_draws).log_p
    terms = (log_p - log_q).double()
    return float(terms.mean()), float(terms.std() / num_draws**0.5)


def mean_objective(guide, model, inputs, num=200):
    torch.manual_seed(2)
    with torch.no_grad():
        losses = torch.stack([guide.objective(model, inputs) for _ in range(num)])
    return float(losses.mean()), float(losses.std() / num**0.5)


MODELS = {
    "single effects": lambda real, umi: pair(real, 2, control="control"),
    "spike and slab": lambda real, umi: pair(real, 2, environment_prior="spike_slab", control="control"),
    "basic": lambda real, umi: pair(real, model=basic_vae(real, 2)),
    "gated with scales": lambda real, umi: pair(real, model=gated_environment_vae(real, 2, scales=True)),
    "sVAE+": lambda real, umi: pair(umi, model=svae_plus(umi, 3)),
    "descriptors": lambda real, umi: pair(real, 2, environment_prior="descriptors", control="control"),
    "counts": lambda real, umi: pair(umi, 4, control="control"),
    "causal map": lambda real, umi: pair(real, 2, causal_map="linear"),
    "student": lambda real, umi: pair(real, 2, likelihood="student_t"),
    "conditional": lambda real, umi: pair(
        real, model=conditional_vae(real, 2), sees="x_u", num_features=real.sizes["feature"]
    ),
    "film": lambda real, umi: pair(umi, 3, sees="film", num_features=umi.sizes["condition"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_objective_is_minus_the_elbo_of_model_and_guide(name, real, umi):
    model, guide, inputs = MODELS[name](real, umi)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    guide.update(model, inputs, 0)
    exact, error = mean_objective(guide, model, inputs)
    drawn, drawn_error = elbo_by_draws(model, guide, inputs, 1000)
    assert abs(exact + drawn) < 4 * (error + drawn_error) + 1e-6 * abs(exact)
    assert drawn_error < 0.02 * abs(exact)


def test_direct_and_residual_guides_have_the_same_elbo(real):
    model, guide, inputs = pair(real, model=translation_vae(real, 2), guide_options={"parameterisation": "residual"})
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.environment_prior.parameters():
            parameter.add_(torch.randn_like(parameter))
        mean = guide.environment.moments(model.environment_prior, inputs.get("descriptors")).mean
    assert float(mean.abs().max()) > 0.1
    environment = inputs["environment"]

    class Shifted(EnvironmentVAEGuide):
        """A direct guide whose encoder adds the shift itself."""

        def encode(self, expression, environment, library, descriptors, mean):
            loc, log_variance = super().encode(expression, environment, library, descriptors, mean)
            return loc + mean[environment], log_variance

    direct = copy.deepcopy(guide)
    direct.__class__, direct.parameterisation = Shifted, "direct"
    torch.manual_seed(0)
    residual_loss = guide.objective(model, inputs)
    torch.manual_seed(0)
    direct_loss = direct.objective(model, inputs)
    torch.testing.assert_close(residual_loss, direct_loss, rtol=1e-12, atol=0)
    # The closed form of the residual parameterisation: the location of the encoder against a standard normal.
    loc, log_variance = guide.encode(inputs["expression"], environment, None, inputs.get("descriptors"), mean)
    inner = loc - mean[environment]
    wanted = 0.5 * (log_variance.exp() + inner**2 - 1 - log_variance).sum()
    found = guide.divergence(
        loc, log_variance, environment, guide.environment.moments(model.environment_prior, inputs.get("descriptors"))
    )
    torch.testing.assert_close(found, wanted)


def test_minibatches_are_unbiased(real):
    model, guide, inputs = pair(real, 2, control="control")
    guide.update(model, inputs, 0)
    n = len(inputs["environment"])
    whole, error = mean_objective(guide, model, inputs)
    torch.manual_seed(3)
    losses = []
    with torch.no_grad():
        for _ in range(300):
            for rows in torch.randperm(n).split(n // 4):
                with Supply({"cell": rows}):
                    losses.append(guide.objective(model, inputs))
    losses = torch.stack(losses)
    assert abs(float(losses.mean()) - whole) < 4 * (error + float(losses.std() / len(losses) ** 0.5))


@pytest.mark.parametrize("counted", [False, True])
def test_a_rotation_changes_neither_outputs_nor_locations(real, umi, counted):
    data = umi if counted else real
    model, guide, inputs = pair(data, 4)
    with torch.no_grad():
        before = guide.encode(inputs["expression"], inputs["environment"], inputs.get("library"), None, None)[0]
        output = model.output(before, inputs["environment"])
        guide.environment.update(model.environment_prior, guide.statistics(model, inputs), free=True)
        found = guide.statistics(model, inputs)
        planted = torch.linalg.qr(torch.randn(4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0)))[0]
        sparse = torch.zeros_like(found.mean)
        sparse[torch.arange(len(sparse)), torch.arange(len(sparse)) % 4] = 3.0
        moved = copy.copy(found)
        object.__setattr__(moved, "mean", sparse @ planted)
        rotated = guide.rotate(model, moved)
        after = guide.encode(inputs["expression"], inputs["environment"], inputs.get("library"), None, None)[0]
        assert float((after - before).abs().max()) > 0.05
        assert float((rotated.mean.abs() > 1e-6).sum()) == len(sparse)
        torch.testing.assert_close(model.output(after, inputs["environment"]), output, rtol=1e-5, atol=1e-5)
    assert float(guide.rotation_agreement) > 0.5


def test_an_offset_of_all_environments_goes_into_the_decoder(umi):
    model, guide, inputs = pair(umi, 4)
    with torch.no_grad():
        before = guide.encode(inputs["expression"], inputs["environment"], inputs["library"], None, None)[0]
        output = model.output(before, inputs["environment"])
        found = guide.statistics(model, inputs)
        sparse = torch.zeros_like(found.mean)
        sparse[:4, :3] = 3 * torch.eye(4, 3, dtype=torch.double)
        shifted = EnvironmentStatistics(found.count, sparse + torch.tensor([0.0, 0.0, 0.0, 5.0]), found.variance)
        recentred = guide.rotate(model, shifted)
        after = guide.encode(inputs["expression"], inputs["environment"], inputs["library"], None, None)[0]
        torch.testing.assert_close(model.output(after, inputs["environment"]), output, rtol=1e-5, atol=1e-5)
    assert float((after - before).abs().max()) > 1
    assert int((recentred.mean.abs() > 1e-3).sum()) == 3


def test_stages_decide_what_an_update_does(real):
    stages = Stages(start=10, free_until=30, rotate_at=(20, 40))
    model, guide, inputs = pair(real, 2, control="control", guide_options={"stages": stages})
    state = copy.deepcopy(guide.state_dict())
    guide.update(model, inputs, 5)
    assert all(bool((value == state[name]).all()) or value.isnan().all() for name, value in guide.state_dict().items())
    guide.update(model, inputs, 10)
    assert bool(guide.environment.free)
    assert int(guide.rotations_done) == 0
    guide.update(model, inputs, 25)
    assert int(guide.rotations_done) == 1
    guide.update(model, inputs, 30)
    assert not bool(guide.environment.free)
    guide.update(model, inputs, 45)
    guide.update(model, inputs, 46)
    assert int(guide.rotations_done) == 2


def test_statistics_are_means_by_environment(real):
    model, guide, inputs = pair(real, 2)
    with torch.no_grad():
        found = guide.statistics(model, inputs)
        loc, log_variance = guide.encoder(inputs["expression"], None, None)
    e = inputs["environment"]
    wanted = torch.stack([loc[e == k].mean(0) for k in range(3)])
    torch.testing.assert_close(found.mean, wanted)
    torch.testing.assert_close(found.variance, log_variance.exp().mean(0))
    assert found.count.tolist() == [20.0, 20.0, 20.0]
    with torch.no_grad():
        parts = list(guide.chunks(model, inputs, 7))
    torch.testing.assert_close(torch.cat([loc for _, loc, _ in parts]), loc)


def test_gene_effects_find_what_one_gene_does(umi):
    changed = umi.copy(deep=True)
    rows = changed["environment"].values == 2
    changed["expression"][rows, 3] = (changed["expression"][rows, 3] * 8).round()
    found = []
    for data in (umi, changed):
        model, guide, inputs = pair(data, 4, control="control", gene_effects=True, seed=1)
        for step in range(6):
            torch.manual_seed(step)
            guide.update(model, inputs, step)
        found.append(guide.gene_effects.mean())
        assert float(found[-1][0].abs().max()) == 0.0  # the control
    difference = found[1] - found[0]
    assert int(difference[2].argmax()) == 3
    assert 1.0 < float(difference[2, 3]) < 3.0  # the logarithm of 8 is 2.1


def test_guide_and_model_have_the_same_sites(real, umi):
    for make in MODELS.values():
        model, guide, inputs = make(real, umi)
        with torch.no_grad(), poutine.block():
            drawn = poutine.trace(guide).get_trace(**inputs)
            trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(**inputs)
        trace.compute_log_prob()
        latent = {n for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
        assert latent <= set(drawn.nodes)


def test_wrong_parts_are_refused(real, umi):
    model = EnvironmentVAE.for_data(real, 2)
    with pytest.raises(DataError, match="encoder: found 12 genes"):
        EnvironmentVAEGuide.for_model(model, guide_of(EnvironmentVAE.for_data(umi, 2), umi).encoder)
    with pytest.raises(DataError, match="encoder: found 3 latents"):
        EnvironmentVAEGuide.for_model(model, guide_of(EnvironmentVAE.for_data(real, 3), real).encoder)
    with pytest.raises(DataError, match="parameterisation: found 'sideways'"):
        guide_of(model, real, parameterisation="sideways")
    with pytest.raises(DataError, match="relaxed_masks: found SingleEffects"):
        guide_of(model, real, relaxed_masks=True)
    assert isinstance(model.environment_prior, SingleEffects)


def test_settings_rebuild_the_guide(real, umi):
    for make in MODELS.values():
        model, guide, inputs = make(real, umi)
        guide.update(model, inputs, 0)
        again = EnvironmentVAEGuide.from_settings(guide.settings()).double()
        again.load_state_dict(guide.state_dict())
        again.attach(model)
        torch.manual_seed(0)
        wanted = guide.objective(model, inputs)
        torch.manual_seed(0)
        torch.testing.assert_close(again.objective(model, inputs), wanted)


def test_relaxed_masks_are_unbiased_for_the_exact_objective(umi):
    model = svae_plus(umi, 3)
    exact_model, exact, inputs = pair(umi, model=model)
    relaxed = guide_of(exact_model, umi, relaxed_masks=True).double()
    relaxed.load_state_dict(exact.state_dict())
    with torch.no_grad():
        for guide in (exact, relaxed):
            guide.environment.logits.copy_(
                torch.linspace(-2, 2, guide.environment.logits.numel()).view_as(guide.environment.logits)
            )
    wanted, error = mean_objective(exact, exact_model, inputs, 300)
    found, relaxed_error = mean_objective(relaxed, exact_model, inputs, 300)
    assert abs(found - wanted) < 4 * (error + relaxed_error)


def test_pyro_parameters_are_left_alone(real):
    model, guide, inputs = pair(real, 2)
    guide.objective(model, inputs)
    assert not list(pyro.get_param_store().keys())
    assert isinstance(gated_environment_vae(real, 2).environment_prior, GatedShifts)
