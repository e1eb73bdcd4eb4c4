import warnings

import numpy as np
import pytest
import torch
from environment_fits import counts, two_latents

import embergraph as eg
from embergraph.guides import EnvironmentVAEGuide, LinearEnvironmentVAEGuide
from embergraph.guides.parts.cell_encoders import CellEncoder
from embergraph.methods._environment_vae_plan import Choice
from embergraph.models import EnvironmentVAE
from embergraph.models.parts.errors import DataError, SchemaError


@pytest.fixture(scope="module")
def real():
    return two_latents(num_cells=150)


@pytest.fixture(scope="module")
def umi():
    return counts(num_perturbations=8, num_cells=40, control=True)


@pytest.fixture(scope="module")
def exact(real):
    return eg.fit(EnvironmentVAE.for_data(real, 2, control="control"), real, progress=False)


@pytest.fixture(scope="module")
def hybrid(umi):
    model = EnvironmentVAE.for_data(umi, 4, control="control", gene_effects=True)
    return eg.fit(model, umi, num_steps=200, progress=False)


def test_the_plan_takes_em_where_it_is_exact(real, exact):
    assert isinstance(exact.guide, LinearEnvironmentVAEGuide)
    assert exact.settings["routine"] == "em"
    trained = eg.fit(EnvironmentVAE.for_data(real, 2), real, sees="x", num_steps=20, progress=False)
    assert isinstance(trained.guide, EnvironmentVAEGuide)
    student = EnvironmentVAE.for_data(real, 2, likelihood="student_t")
    with pytest.raises(SchemaError, match="routine: found a model without exact EM"):
        eg.fit(student, real, routine="em", progress=False)


def test_targets_and_shifts_are_found_and_named(exact):
    found = exact.environments()
    assert found["condition"].values.tolist() == ["control", "environment_1", "environment_2"]
    probability = found["target_probability"].values
    assert probability[0].max() == 0
    assert sorted(probability[1].round(2).tolist()) == [0.0, 1.0]
    np.testing.assert_allclose(probability[1] + probability[2], 1.0, atol=1e-3)
    clear = probability > 0.5
    np.testing.assert_allclose(np.abs(found["shift"].values[clear]), 3.0, atol=0.4)
    lower, upper = found["shift_lower"].values[clear], found["shift_upper"].values[clear]
    assert bool((lower * upper > 0).all())
    assert set(found["positive_probability"].values[clear]) <= {0.0, 1.0}
    wide = exact.environments(interval=0.99)
    assert bool((wide["shift_lower"].values[clear] < lower).all())
    assert "given decoder" in found.attrs["shift_intervals"]


def test_intervals_under_a_network_are_labelled(hybrid):
    assert "conditional on the decoder" in hybrid.environments().attrs["shift_intervals"]


def test_calibrated_sizes_are_for_counts_under_a_network(exact, hybrid, real, umi):
    with pytest.raises(SchemaError, match="sizes of shifts were calibrated for counts"):
        exact.environments(real, calibrated=True)
    with pytest.raises(SchemaError, match="without causal map and gene effects"):
        hybrid.environments(umi, calibrated=True)
    with pytest.raises(DataError, match="data: found none"):
        hybrid.environments(calibrated=True)


@pytest.mark.parametrize("name", ["exact", "hybrid"])
def test_latents_densities_and_predictions_of_other_cells(name, request, real, umi):
    fit, data = request.getfixturevalue(name), {"exact": real, "hybrid": umi}[name]
    few = data.isel(cell=[5, 60, 61, 200])
    latents = fit.latents(few)
    assert latents["mean"].shape == (4, fit.model.num_latents)
    assert latents["cell"].values.tolist() == few["cell"].values.tolist()
    whole = fit.latents(data)["mean"].isel(cell=[5, 60, 61, 200])
    np.testing.assert_allclose(latents["mean"], whole, rtol=1e-4, atol=1e-5)
    density = fit.log_density(few)
    assert bool(np.isfinite(density).all())
    drawn = fit.predict(few.drop_vars("expression"), 7)
    assert drawn["expression"].shape == (1, 7, 4, data.sizes["gene"])


def test_the_log_density_of_a_linear_model_is_its_marginal(exact, real):
    """With the latents integrated out: x ~ Normal(b + mu W, W'W + s^2), averaged over draws of the shifts."""
    linear = exact.model.decoder
    W, b = linear.weight.detach().double(), linear.bias.detach().double()
    covariance = W.T @ W + torch.eye(len(b), dtype=torch.double) * exact.model.likelihood.scale.detach().double() ** 2
    mu = torch.as_tensor(exact.environments(num_samples=4000)["shift"].values)
    mean = b + mu[real["environment"].values] @ W
    wanted = torch.distributions.MultivariateNormal(mean, covariance).log_prob(
        torch.as_tensor(real["expression"].values)
    )
    found = exact.log_density(real, 400)
    assert abs(float(found.mean()) - float(wanted.mean())) < 0.01
    assert float(np.abs(found.values - wanted.numpy()).max()) < 0.6


def test_more_draws_do_not_lower_the_density(hybrid, umi):
    assert float(hybrid.log_density(umi, 50).mean()) > float(hybrid.log_density(umi, 2).mean())


def test_effects_of_the_control_are_zero_and_others_are_those_of_the_data(hybrid, umi):
    effects = hybrid.effects(umi, num_samples=30)
    assert effects["gene"].values.tolist() == umi["gene"].values.tolist()
    assert float(np.abs(effects["effect"].sel(condition="control")).max()) == 0
    profile = umi["expression"] / umi["library"]
    raw = profile.groupby(umi["environment"]).mean().values
    wanted = np.log2(raw / raw[0])
    found = effects["effect"].values
    assert np.corrcoef(found[1:].ravel(), wanted[1:].ravel())[0, 1] > 0.9
    assert bool((effects["effect_lower"] <= effects["effect_upper"]).all())
    against = hybrid.effects(umi, control="perturbation_0", num_samples=30)
    assert float(np.abs(against["effect"].sel(condition="perturbation_0")).max()) == 0
    with pytest.raises(DataError, match="control: found 'nobody'"):
        hybrid.effects(umi, control="nobody")


def test_effects_skip_environments_without_cells(hybrid, umi):
    few = umi.isel(cell=umi["environment"].values != 3)
    effects = hybrid.effects(few, num_samples=5)
    assert bool(effects["effect"].isel(condition=3).isnull().all())
    assert bool(effects["effect"].isel(condition=4).notnull().all())


def test_the_tree_names_conditions_latents_and_genes(exact, real):
    tree = exact.posterior(real, 40, predictive=True, prior=True, num_cells=30)
    posterior = tree["posterior"]
    assert posterior["shift"].dims == ("chain", "draw", "condition", "latent")
    assert posterior["condition"].values.tolist() == exact.model.conditions
    assert posterior["z"].sizes["cell"] == 30
    assert tree["posterior_predictive"]["expression"].sizes["gene"] == 10
    assert "target_probability" in tree["environments"]
    assert "shift_intervals" in posterior.attrs
    whole = exact.posterior(real, 3, num_cells=None)
    assert whole["posterior"]["z"].sizes["cell"] == real.sizes["cell"]


def test_a_fit_comes_back_from_disk(tmp_path, real, umi, exact, hybrid):
    for fit, data in ((exact, real), (hybrid, umi)):
        fit.save(tmp_path / "fit")
        again = eg.load(tmp_path / "fit")
        assert type(again) is type(fit)
        assert again.environments().equals(fit.environments())
        assert again.log_density(data, 3).equals(fit.log_density(data, 3))
        assert again.latents(data).equals(fit.latents(data))


def test_the_report_says_how_far_to_trust(exact, hybrid, real, umi):
    for fit, data in ((exact, real), (hybrid, umi)):
        table = fit.report(data, data.isel(cell=slice(0, 20)), num_samples=10)
        assert {"targets_per_environment", "used_latents", "within_variance", "test_log_density"} <= set(table)
        assert "latents" in eg.as_text(table)
    assert float(exact.report(real, num_samples=5)["used_latents"]) == 2


def test_the_same_seed_gives_the_same_fit(umi):
    model = EnvironmentVAE.for_data(umi, 3)
    torch.manual_seed(1)
    first = eg.fit(model, umi, num_steps=40, seed=4, progress=False)
    torch.manual_seed(2)
    again = eg.fit(model, umi, num_steps=40, seed=4, progress=False)
    other = eg.fit(model, umi, num_steps=40, seed=5, progress=False)
    assert first.history.equals(again.history)
    assert first.environments().equals(again.environments())
    assert not first.history.equals(other.history)


def test_restarts_differ_and_the_best_is_kept(umi):
    fit = eg.fit(eg.models.basic_vae(umi, 3), umi, num_steps=40, num_restarts=3, progress=False)
    assert fit.history.sizes["restart"] == 3
    assert len(set(fit.history.values[:, 0].tolist())) == 3
    finals = fit.settings["final_losses"]
    assert fit.settings["chosen_restart"] == int(np.argmin(finals))


def test_resuming_goes_on(umi, hybrid):
    more = hybrid.resume(umi, 10, progress=False)
    assert more.settings["steps_done"] == 210
    assert hybrid.settings["steps_done"] == 200


def test_new_environments_from_their_descriptors(real):
    rng = np.random.default_rng(0)
    u = rng.normal(size=(30, 2))
    W = np.array([[2.0, 0, 1, 0, -1], [0, 1.5, 1, -2, 0]])
    environment = np.repeat(np.arange(30), 6)
    z = u[environment] + 0.3 * rng.normal(size=(180, 2))
    data = eg.from_arrays(z @ W + 0.1 * rng.normal(size=(180, 5)), environment=environment.tolist())
    data = data.assign(descriptors=(("condition", "feature"), u))
    seen = data.isel(cell=data["environment"].values < 25)
    model = EnvironmentVAE.for_data(seen, 3, environment_prior="descriptors")
    fit = eg.fit(model, seen, num_steps=800, progress=False)
    found = fit.new_environments(data["descriptors"].isel(condition=slice(25, 30)))
    error = float(((found["mean"].values - u[25:] @ W) ** 2).mean())
    assert error < 0.15 * float(((u[25:] @ W) ** 2).mean())
    assert bool((found["lower"] < found["upper"]).all())
    with torch.no_grad():  # draws come in pairs, so that the mean of a linear decoder is exact
        law = fit.model.environment_prior.new(torch.as_tensor(u[25:], dtype=torch.float32))
        np.testing.assert_allclose(found["mean"], fit.model.decoder(law.mean), rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match="descriptors: found dims"):
        fit.new_environments(data["descriptors"].rename(feature="other"))
    with pytest.raises(SchemaError, match="environment_prior: found SingleEffects"):
        eg.fit(EnvironmentVAE.for_data(real, 2), real, progress=False).new_environments(data["descriptors"])


def test_undetermined_axes_are_warned_of(umi):
    same = umi.assign(environment=umi["environment"].copy(data=np.tile(np.arange(9), 40)[: umi.sizes["cell"]]))
    model = EnvironmentVAE.for_data(same, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = eg.fit(model, same, num_steps=100, progress=False)
    agreement = float(fit.guide.rotation_agreement)
    assert (agreement < 0.2) == any("latent axes not determined" in str(w.message) for w in caught)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.assign(expression=d["expression"] + 0.5), "expression: found values that are no counts"),
        (lambda d: d.assign(expression=d["expression"].where(d["cell"] != "cell_3")), "expression: found 12 values"),
        (lambda d: d.assign(environment=d["environment"] + 5), "environment: found"),
        (lambda d: d.assign_coords(condition=[f"x{c}" for c in d["condition"].values]), "condition: found"),
        (lambda d: d.isel(gene=slice(0, 5)), "expression: found 5 along 'gene'"),
        (
            lambda d: d.drop_vars("library").assign(expression=d["expression"].where(d["cell"] != "cell_3", 0.0)),
            "library: found 1 cells without counts",
        ),
    ],
)
def test_bad_data_are_refused_before_work(umi, change, message):
    model = EnvironmentVAE.for_data(umi, 3)
    with pytest.raises(DataError, match=message):
        eg.fit(model, change(umi), num_steps=10, progress=False)


def test_bad_options_are_refused(real):
    model = EnvironmentVAE.for_data(real, 2)
    for options, message in (
        ({"routine": "magic"}, "routine: found 'magic'"),
        ({"num_steps": 0, "routine": "svi"}, "num_steps: found 0"),
        ({"batch_size": -1}, "batch_size: found -1"),
        ({"encoder": CellEncoder(9, 2, (3,))}, "encoder: found 9 genes"),
        ({"sees": "everything"}, "sees: found 'everything'"),
    ):
        with pytest.raises(DataError, match=message):
            eg.fit(model, real, progress=False, **options)


def test_choices_depend_on_the_kind_of_model(real, umi):
    counted = Choice.of(EnvironmentVAE.for_data(umi, 3), umi, None, None, None)
    assert counted.batch_size == 256
    assert counted.stages.rotate_at[0] == counted.stages.free_until
    assert "guide.kl_weight" in counted.schedules
    gated = Choice.of(eg.models.gated_environment_vae(real, 2), real, None, None, None)
    assert gated.update_every is None
    assert gated.stages.rotate_at == ()
    assert "environment_prior.temperature" in gated.schedules
    mapped = Choice.of(EnvironmentVAE.for_data(real, 2, causal_map="linear"), real, None, None, None)
    assert mapped.stages.rotate_at == ()
    assert mapped.update_every is not None


def test_environments_without_cells_keep_the_prior_and_are_warned_of(real):
    names = [*real["condition"].values.tolist(), "unused"]
    more = real.drop_dims("feature").drop_vars(["true_shift", "true_targets"]).drop_vars("condition")
    more = more.assign_coords(condition=names)
    with pytest.warns(UserWarning, match="found no cells of 'unused'"):
        fit = eg.fit(EnvironmentVAE.for_data(more, 2, control="control"), more, progress=False)
    row = fit.environments().sel(condition="unused")
    assert bool((row["target_probability"] > 0.1).all())
    assert bool((row["shift_sd"] > 0.5).all())


def test_new_environments_of_sparse_descriptors_use_what_was_learned(real):
    prior = eg.models.DescriptorShifts(3, 2, num_features=2, sparse=True)
    fit = eg.fit(EnvironmentVAE.for_data(real, 2, environment_prior=prior), real, num_steps=200, progress=False)
    fit.guide.environment.shift_variance.fill_(1e-6)
    first, second = (fit.new_environments(real["descriptors"], seed=seed, num_samples=400) for seed in (0, 1))
    np.testing.assert_allclose(first["shift"], second["shift"], atol=0.5)
    with pytest.raises(SchemaError, match="along 'feature'"):
        fit.new_environments(real["descriptors"].isel(feature=[1, 0]))


def test_options_that_em_cannot_use_are_refused(real):
    model = EnvironmentVAE.for_data(real, 2)
    for options in ({"batch_size": 10}, {"sees": "film"}, {"num_restarts": 2}, {"relaxed_masks": True}):
        with pytest.raises(DataError, match=f"{next(iter(options))}: found it with routine='em'"):
            eg.fit(model, real, routine="em", progress=False, **options)


class Stubborn(eg.models.LinearDecoder):
    """A decoder whose author forgot the rotation."""

    def rotate(self, rotation):
        pass


def test_a_decoder_that_does_not_rotate_is_noticed(real):
    model = EnvironmentVAE.for_data(real, 2, decoder=Stubborn(2, 10), likelihood="student_t")
    with pytest.raises(DataError, match=r"Stubborn.rotate\(R\)"):
        eg.fit(model, real, num_steps=200, progress=False)


def test_unscaled_values_are_warned_of(real):
    large = real.assign(expression=1000 * real["expression"])
    with pytest.warns(UserWarning, match="median standard deviation"):
        eg.fit(EnvironmentVAE.for_data(large, 2, likelihood="student_t"), large, num_steps=5, progress=False)


def test_a_loaded_fit_goes_on_training(tmp_path, umi):
    fit = eg.fit(EnvironmentVAE.for_data(umi, 3), umi, num_steps=60, progress=False)
    fit.save(tmp_path / "fit")
    more = eg.load(tmp_path / "fit").resume(umi, 5, progress=False)
    assert more.settings["steps_done"] == 65
    assert bool(np.isfinite(more.environments()["shift"]).all())
