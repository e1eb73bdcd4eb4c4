"""What the default finds on simulated environments, and that models without sparse environments do not find it.

Seeds are fixed; sizes are the smallest at which the bounds of the full benchmarks hold.
"""

import numpy as np
import pytest
import torch

import embergraph as eg
from embergraph.guides.parts.cell_encoders import CellEncoder
from embergraph.latent_scores import align, column_disentanglement, mcc, target_scores
from embergraph.models import EnvironmentVAE, basic_vae, conditional_vae

SEEDS = (0, 1, 2)
NUM_STEPS = 1000


def two_latents(seed, num_cells=1000, **options):
    return eg.datasets.simulated_environments(seed, num_cells=num_cells, **options)


def fitted(data, num_latents=2, **options):
    model = EnvironmentVAE.for_data(data, num_latents, control="control")
    return eg.fit(model, data, progress=False, **options)


def disentanglement(fit, data):
    return column_disentanglement(fit.model.decoder.mixing.detach().numpy(), data["true_mixing"])


def scores(fit, data):
    probability = fit.environments()["target_probability"]
    return target_scores(probability, data["true_targets"], align(fit.latents(data)["mean"], data["true_z"]))


def targets_per_environment(fit):
    return float(fit.environments()["target_probability"].sum("latent").mean())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_latents", [2, 6])
def test_em_finds_the_axes_and_the_targets(seed, num_latents):
    data = two_latents(seed)
    fit = fitted(data, num_latents)
    assert disentanglement(fit, data) > 0.99
    assert float(scores(fit, data)["f1"]) == 1.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_cells", [(5000, 50, 50), (50, 5000, 5000)])
def test_em_does_with_few_cells_of_some_environments(seed, num_cells):
    data = two_latents(seed, num_cells)
    fit = fitted(data)
    assert disentanglement(fit, data) > 0.96
    assert float(scores(fit, data)["f1"]) == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_em_finds_small_shifts(seed):
    data = two_latents(seed, 4000, offsets=({}, {0: 0.5}, {1: 0.5}))
    fit = fitted(data)
    assert disentanglement(fit, data) > 0.95
    assert float(scores(fit, data)["f1"]) == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_svi_finds_the_axes_and_the_targets(seed):
    data = two_latents(seed)
    fit = fitted(data, routine="svi", num_steps=NUM_STEPS)
    assert disentanglement(fit, data) > 0.97
    assert float(scores(fit, data)["f1"]) == 1.0


def test_a_basic_vae_stays_rotated():
    found = []
    for seed in range(6):
        data = two_latents(seed)
        fit = eg.fit(basic_vae(data, 2), data, num_steps=600, progress=False)
        found.append(disentanglement(fit, data))
    assert np.mean(found) < 0.92


def test_a_conditional_vae_takes_the_shifts_out_of_its_latents():
    data = two_latents(0)
    fit = eg.fit(conditional_vae(data, 2), data, num_steps=NUM_STEPS, progress=False)
    mean, codes = fit.latents(data)["mean"].values, data["environment"].values
    centre = np.stack([mean[codes == e].mean(0) for e in range(3)])
    assert np.abs(centre).max() < 0.5
    assert mcc(mean, data["true_z"]) < 0.75 < 0.95 < mcc(fitted(data).latents(data)["mean"], data["true_z"])


def without_effect(seed, null):
    if null == "equal":
        return two_latents(seed, offsets=({}, {}, {}))
    data = two_latents(seed)
    return data.assign(environment=("cell", np.random.default_rng(seed).permutation(data["environment"].values)))


def check_no_targets(fit):
    assert targets_per_environment(fit) < 0.1
    assert float(fit.environments()["target_probability"].max()) < 0.5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("null", ["permuted", "equal"])
def test_em_calls_no_targets_where_environments_do_nothing(seed, null):
    with pytest.warns(UserWarning, match="axes not determined"):
        fit = fitted(without_effect(seed, null))
    check_no_targets(fit)


@pytest.mark.parametrize("null", ["permuted", "equal"])
def test_svi_calls_no_targets_where_environments_do_nothing(null):
    check_no_targets(fitted(without_effect(0, null), routine="svi", num_steps=600))


def counts(seed):
    return eg.datasets.simulated_perturbations(
        seed, num_perturbations=40, num_cells=50, num_latents=5, num_genes=40, max_targets=2
    )


def test_targets_are_found_in_counts_where_a_basic_vae_mixes_the_latents():
    data, options = counts(1), {"num_steps": 800, "progress": False}
    fit = eg.fit(EnvironmentVAE.for_data(data, 7), data, **options)
    basic = eg.fit(basic_vae(data, 7), data, **options)
    found = scores(fit, data)
    ours, theirs = (mcc(one.latents(data)["mean"], data["true_z"]) for one in (fit, basic))
    assert ours > 0.95
    assert ours - theirs > 0.2
    assert float(found["f1"]) > 0.95
    assert float(found["calibration_error"]) < 0.02
    assert float(found["found_targets"]) == pytest.approx(float(found["true_targets"]), rel=0.1)


def test_permuted_labels_of_counts_have_no_targets():
    data = counts(1)
    codes = np.random.default_rng(0).permutation(data["environment"].values)
    data = data.assign(environment=("cell", codes))
    fit = eg.fit(EnvironmentVAE.for_data(data, 7), data, num_steps=500, progress=False)
    assert targets_per_environment(fit) < 0.1


def far_error(offsets, **options):
    """Squared error a gene of decoded cells with either latent moved by 20, by a basic VAE with a linear encoder."""
    data = two_latents(0, 3000, offsets=offsets, noise=0.05, **options)
    torch.manual_seed(0)
    encoder = CellEncoder(data.sizes["gene"], 2, ())
    encoder.fit_transform_(torch.as_tensor(data["expression"].values))
    fit = eg.fit(basic_vae(data, 2), data, encoder=encoder, num_steps=NUM_STEPS, progress=False)
    errors = []
    for move in ([20.0, 0.0], [0.0, 20.0]):
        far = two_latents(0, 500, offsets=[move] * len(offsets), noise=0.05, **options)
        far = far.assign_coords(condition=data["condition"])
        z = torch.as_tensor(fit.latents(far)["mean"].values)
        with torch.no_grad():
            errors.append(float(np.mean((fit.model.decoder(z).numpy() - far["expression"].values) ** 2)))
    return float(np.mean(errors))


def test_another_environment_repairs_extrapolation_where_latents_depend_on_each_other():
    alone = far_error([{}])
    chain = {"graph": "chain", "latent_noise": (1.0, 0.0)}
    dependent, with_shift = far_error([{}], **chain), far_error([{}, {1: 0.5}], **chain)
    assert alone < 0.05
    assert dependent > 10
    assert with_shift < dependent / 2
