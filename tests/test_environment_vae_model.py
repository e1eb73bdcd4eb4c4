import numpy as np
import pytest
import torch
from environment_fits import counts, two_latents
from pyro import poutine

import embergraph as eg
from embergraph.inference.sampler import Sampler
from embergraph.models import (
    EnvironmentVAE,
    GaussianLikelihood,
    GeneEffects,
    LinearDecoder,
    MLPDecoder,
    SingleEffects,
    StandardPrior,
    basic_vae,
    conditional_vae,
    gated_environment_vae,
    svae_plus,
    translation_vae,
)
from embergraph.models.environment_vae import of_cells
from embergraph.models.parts.errors import DataError


@pytest.fixture(scope="module")
def real():
    return two_latents(num_cells=15)


@pytest.fixture(scope="module")
def umi():
    return counts(control=True)


def inputs_of(model, data):
    return eg.inference.inputs.to_inputs(model.schema, data)


def test_defaults_follow_the_data(real, umi):
    gaussian = EnvironmentVAE.for_data(real, 2, control="control")
    assert type(gaussian.decoder).__name__ == "LinearDecoder"
    assert type(gaussian.likelihood).__name__ == "GaussianLikelihood"
    assert gaussian.environment_prior.max_targets == 1
    assert gaussian.control == 0
    counted = EnvironmentVAE.for_data(umi, 20)
    assert type(counted.decoder).__name__ == "MLPDecoder"
    assert counted.likelihood.counts
    assert counted.environment_prior.max_targets == 3  # half of the six perturbations
    assert counted.conditions == [str(c) for c in umi["condition"].values]
    assert "library" in counted.schema.inputs
    np.testing.assert_allclose(
        gaussian.decoder.offset.detach().numpy(), real["expression"].values.mean(0), rtol=1e-4, atol=1e-6
    )


def test_weights_at_the_start_depend_on_the_seed_alone(real):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, again, other = (EnvironmentVAE.for_data(real, 2, seed=seed) for seed in (0, 0, 1))
    assert bool((torch.get_rng_state() == state).all())
    assert torch.equal(first.decoder.weight, again.decoder.weight)
    assert not torch.equal(first.decoder.weight, other.decoder.weight)


def test_the_density_is_that_of_the_generative_process(real):
    model = EnvironmentVAE.for_data(real, 2, control="control").double()
    inputs = inputs_of(model, real)
    with poutine.block(), torch.no_grad():
        trace = poutine.trace(model).get_trace(**inputs)
    trace.compute_log_prob()
    value = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}
    mu = torch.zeros(3, 2, dtype=torch.double)
    for e in range(3):
        if value["target"][e, 0] > 0:
            mu[e, value["target"][e, 0] - 1] = value["size"][e, 0]
    assert bool((mu[0] == 0).all())
    torch.testing.assert_close(value["shift"], mu)
    normal = torch.distributions.Normal
    z = normal(mu[inputs["environment"]], 1.0).log_prob(value["z"]).sum(-1)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], z)
    mean = value["z"] @ model.decoder.weight + model.decoder.bias
    x = normal(mean, model.likelihood.scale).log_prob(inputs["expression"]).sum(-1)
    torch.testing.assert_close(trace.nodes["expression"]["log_prob"], x)


def test_rows_of_cells_under_draws():
    table, e = torch.randn(4, 1, 3, 2), torch.tensor([2, 0, 0, 1, 2])
    found = of_cells(table, e)
    assert found.shape == (4, 5, 2)
    assert torch.equal(found[1, 3], table[1, 0, 1])
    assert torch.equal(of_cells(table[0, 0], e)[4], table[0, 0, 2])


def test_draws_share_a_pass(real, umi):
    """The sampler compares a draw of a vectorised pass with the same draw alone, site by site."""
    for model in published(real, umi):
        data = umi if model.likelihood.counts else real
        assert Sampler(model.double(), None, inputs_of(model, data)).vectorised


def test_hard_interventions_cut_their_target(real):
    model = EnvironmentVAE.for_data(real, 2, causal_map="linear", intervention="hard").double()
    with torch.no_grad():
        for parameter in model.causal_map.parameters():
            parameter.fill_(2.0)
    z, e = torch.randn(3, 2, dtype=torch.double), torch.tensor([0, 1, 2])
    targets = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.double)
    with torch.no_grad():
        found, whole = model.output(z, e, is_target=targets), model.output(z, e)
        torch.testing.assert_close(found[:2], whole[:2])  # the first latent has no causes to be cut from
        torch.testing.assert_close(found[2], model.decoder(z[2]))
    assert float((found[2] - whole[2]).abs().max()) > 0.1


def test_effects_on_genes_add_to_the_output(real):
    model = EnvironmentVAE.for_data(real, 2, gene_effects=True).double()
    z, e = torch.randn(4, 2, dtype=torch.double), torch.tensor([0, 1, 2, 1])
    beta = torch.randn(3, 10, dtype=torch.double)
    torch.testing.assert_close(model.output(z, e, gene_effects=beta), model.decoder(z) + beta[e])


def test_simulation_is_named_and_seeded(real):
    model = EnvironmentVAE.for_data(real, 2, control="control")
    data = model.simulate([0, 0, 1, 2, 2], seed=3)
    assert data["expression"].shape == (5, 10)
    assert data["true_shift"].dims == ("condition", "latent")
    assert data.identical(model.simulate([0, 0, 1, 2, 2], seed=3))
    assert not data.equals(model.simulate([0, 0, 1, 2, 2], seed=4))
    again = EnvironmentVAE.for_data(data.assign_coords(gene=[f"g{i}" for i in range(10)]), 2)
    assert again.conditions == model.conditions


def published(real, umi):
    return [
        basic_vae(real, 2),
        conditional_vae(real, 2),
        gated_environment_vae(real, 2, scales=True),
        translation_vae(real, 2, gate="sparsemax"),
        svae_plus(umi, 3, control="control"),
        EnvironmentVAE.for_data(umi, 3, gene_effects=True, likelihood="poisson"),
        EnvironmentVAE.for_data(real, 2, causal_map="autoregressive", environment_prior="spike_slab"),
        EnvironmentVAE.for_data(real, 2, environment_prior="descriptors", likelihood="student_t"),
    ]


def test_settings_rebuild_every_model(real, umi):
    for model in published(real, umi):
        again = EnvironmentVAE.from_settings(model.settings())
        again.load_state_dict(model.state_dict())
        data = umi if model.likelihood.counts else real
        inputs = inputs_of(model, data.astype("float32").assign(environment=data["environment"]))
        torch.manual_seed(0)
        with poutine.block(), torch.no_grad():
            wanted = poutine.trace(model).get_trace(**inputs).log_prob_sum()
        torch.manual_seed(0)
        with poutine.block(), torch.no_grad():
            found = poutine.trace(again).get_trace(**inputs).log_prob_sum()
        torch.testing.assert_close(found, wanted)
        assert again.name == model.name


def test_published_names_say_what_they_are(real, umi):
    names = [model.name for model in published(real, umi)][:5]
    assert names == ["basic VAE", "conditional VAE", "gated Environment VAE", "Translation VAE", "sVAE+"]


def parts(d=2, p=10, E=3):
    return SingleEffects(E, d), LinearDecoder(d, p), GaussianLikelihood(p)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda data: EnvironmentVAE.for_data(data.drop_vars("environment")), "environment: found"),
        (lambda data: EnvironmentVAE.for_data({"expression": 1}), "data: found dict"),
        (lambda data: EnvironmentVAE.for_data(data, 0), "num_latents: found 0"),
        (lambda data: EnvironmentVAE.for_data(data, 2, control="DMSO"), "control: found 'DMSO'"),
        (lambda data: EnvironmentVAE.for_data(data, 2, decoder="quantum"), "decoder: found 'quantum'"),
        (lambda data: EnvironmentVAE.for_data(data, 2, likelihood="cauchy"), "likelihood: found 'cauchy'"),
        (lambda data: EnvironmentVAE.for_data(data, 2, environment_prior="x"), "environment_prior: found 'x'"),
        (lambda data: EnvironmentVAE.for_data(data, 2, causal_map="x"), "causal_map: found 'x'"),
        (lambda data: EnvironmentVAE.for_data(data, 2, intervention="hard"), "'hard' without a causal map"),
        (lambda data: basic_vae(data, 2, causal_map="linear", intervention="hard"), "names no targets to cut"),
        (lambda data: basic_vae(data, 2, max_targets=3), "max_targets: found it with 'standard'"),
        (lambda data: conditional_vae(data.drop_vars("descriptors"), 2), "descriptors: found none"),
        (lambda data: EnvironmentVAE(*parts(), intervention="loud"), "intervention: found 'loud'"),
        (lambda data: EnvironmentVAE(SingleEffects(3, 4), *parts()[1:]), "decoder: found 2 latents"),
        (lambda data: EnvironmentVAE(*parts()[:2], GaussianLikelihood(9)), "likelihood: found 9 genes"),
    ],
)
def test_what_does_not_fit_is_refused(real, build, message):
    with pytest.raises(DataError, match=message):
        build(real)


def test_parts_are_swapped_as_objects(real):
    model = EnvironmentVAE(
        StandardPrior(3, 4), MLPDecoder(4, 10, hidden=(5,)), GaussianLikelihood(10, scale="gene"),
        gene_effects=GeneEffects(3, 10), name="mine",
    )  # fmt: skip
    data = model.simulate(real["environment"].values)
    assert data["expression"].shape == real["expression"].shape
    assert model.num_latents == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"environment_prior": SingleEffects(4, 2)}, "environment_prior: found 4 environments; wanted 3"),
        ({"environment_prior": SingleEffects(3, 2), "control": "control"}, "found control=None in it; wanted 0"),
        ({"gene_effects": GeneEffects(3, 9)}, "gene_effects: found 9 genes"),
        ({"likelihood": GaussianLikelihood}, "likelihood: found GaussianLikelihood; wanted a name, or an instance"),
        ({"decoder": torch.nn.Linear(2, 10)}, "decoder: found Linear"),
        ({"likelihood": "negative_binomial"}, "expression: found values that are no counts"),
    ],
)
def test_parts_that_do_not_belong_to_the_data_are_refused(real, options, message):
    with pytest.raises(DataError, match=message):
        EnvironmentVAE.for_data(real, 2, **options)
