"""Baselines for cells of several environments against closed forms, scikit-learn and direct maximisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal, nbinom, norm
from sklearn.decomposition import PCA

import embergraph as eg
from embergraph.baselines import (
    EnvironmentMean,
    MeanActivation,
    OracleLinearDecoder,
    PooledNegativeBinomial,
    ProbabilisticPCA,
    TargetNegativeBinomial,
)
from embergraph.baselines.target_counts import inverse_dispersion
from embergraph.models.parts.errors import DataError


def gaussian(seed: int = 0, n: int = 60) -> xr.Dataset:
    random = np.random.default_rng(seed)
    z = random.normal(size=(n, 2))
    environment = np.arange(n) % 3
    x = z @ random.normal(size=(2, 6)) + 0.5 * random.normal(size=(n, 6)) + environment[:, None]
    data = eg.from_arrays(x, environment=np.array(["a", "b", "c"])[environment])
    dose = np.array([0.1, 1.0])[np.arange(n) % 2]
    return data.assign(true_z=(("cell", "true_latent"), z), dose=("cell", dose))


def counts(seed: int = 0, *, size: int = 80, genes: int = 40, effect: float = -1.5) -> xr.Dataset:
    """Control and five targets; target k lowers gene k, and nothing else; the truth in attributes."""
    random = np.random.default_rng(seed)
    environment = np.repeat(np.arange(6), size)
    library = random.lognormal(0.0, 0.4, 6 * size)
    log_rate, theta = random.normal(1.0, 0.7, genes), random.gamma(4.0, 0.5, genes)
    beta = np.zeros((6, genes))
    beta[np.arange(1, 6), np.arange(1, 6)] = effect
    mean = library[:, None] * np.exp(log_rate + beta[environment])
    x = random.negative_binomial(theta, theta / (theta + mean)).astype(float)
    names = np.array(["control", "t1", "t2", "t3", "t4", "t5"])
    data = eg.from_arrays(x, environment=names[environment])
    return data.assign(library=("cell", library), true_beta=(("condition", "gene"), beta))


def test_mean_activation_is_one_normal_per_gene() -> None:
    train, test = gaussian(0), gaussian(1)
    fitted = MeanActivation().fit(train)
    x = train["expression"].to_numpy()
    mean, sd = x.mean(axis=0), x.std(axis=0, ddof=1)
    np.testing.assert_allclose(fitted.predict_mean(test), np.repeat(mean[None], 60, axis=0), rtol=1e-12)
    wanted = norm.logpdf(test["expression"], mean, sd).sum(axis=1)
    np.testing.assert_allclose(fitted.log_density(test), wanted, rtol=1e-10)
    assert fitted.predict_mean(test).dims == ("cell", "gene")


@pytest.mark.parametrize("label", ["environment", "dose"])
def test_environment_mean_is_a_regression_on_indicators(label: str) -> None:
    train, test = gaussian(0), gaussian(1)
    fitted = EnvironmentMean(label).fit(train)
    levels = np.unique(train[label])
    design, other = (np.equal.outer(data[label].to_numpy(), levels).astype(float) for data in (train, test))
    x = train["expression"].to_numpy()
    coefficients = np.linalg.lstsq(design, x, rcond=None)[0]
    np.testing.assert_allclose(fitted.predict_mean(test), other @ coefficients, rtol=1e-9)
    sd = np.sqrt(((x - design @ coefficients) ** 2).sum(axis=0) / (60 - len(levels)))
    wanted = norm.logpdf(test["expression"], other @ coefficients, sd).sum(axis=1)
    np.testing.assert_allclose(fitted.log_density(test), wanted, rtol=1e-9)


def test_environment_mean_refuses_what_it_cannot_know() -> None:
    train = gaussian(0)
    unseen = train.isel(cell=np.flatnonzero(train["environment"] == 2))
    fitted = EnvironmentMean().fit(train.isel(cell=np.flatnonzero(train["environment"] < 2)))
    with pytest.raises(DataError, match="environment: found '2'; wanted levels with training cells"):
        fitted.predict_mean(unseen)
    with pytest.raises(DataError, match="batch: found variables"):
        EnvironmentMean("batch").fit(train)
    single = train.isel(cell=slice(3))
    with pytest.raises(DataError, match="too few cells for a residual variance"):
        EnvironmentMean().fit(single).log_density(single)
    with pytest.raises(DataError, match="genes are"):
        fitted.log_density(train.isel(gene=slice(3)))


def test_pca_is_that_of_scikit_learn() -> None:
    train, test = gaussian(0), gaussian(1)
    fitted = ProbabilisticPCA(2).fit(train)
    x = train["expression"].to_numpy()
    # scikit-learn divides the covariance by n - 1, which is not the maximum of the likelihood.
    peer = PCA(2, svd_solver="full").fit(x.mean(axis=0) + (x - x.mean(axis=0)) * np.sqrt(59 / 60))
    np.testing.assert_allclose(fitted.log_density(test), peer.score_samples(test["expression"]), rtol=1e-9)
    assert float(fitted.log_density(test).mean()) == pytest.approx(peer.score(test["expression"]))


def test_pca_agrees_with_the_dense_normal_and_is_a_maximum() -> None:
    train = gaussian(0)
    fitted = ProbabilisticPCA(2).fit(train)
    x = train["expression"].to_numpy()
    covariance = fitted.loadings @ fitted.loadings.T + fitted.noise_variance * np.eye(6)
    np.testing.assert_allclose(fitted.log_density(train), multivariate_normal(fitted.mean, covariance).logpdf(x))
    centred = (x - fitted.mean).T
    latents = (fitted.loadings.T @ np.linalg.solve(covariance, centred)).T
    np.testing.assert_allclose(fitted.latents(train), latents, atol=1e-12)
    np.testing.assert_allclose(fitted.reconstruct(train), fitted.mean + latents @ fitted.loadings.T)
    np.testing.assert_allclose(fitted.predict_mean(train)[0], x.mean(axis=0))
    best, random = float(fitted.log_density(train).sum()), np.random.default_rng(0)
    for _ in range(20):
        loadings = fitted.loadings + 0.02 * random.normal(size=(6, 2))
        noise = fitted.noise_variance * np.exp(0.05 * random.normal())
        other = multivariate_normal(fitted.mean, loadings @ loadings.T + noise * np.eye(6))
        assert other.logpdf(x).sum() < best


def test_pca_refuses_as_many_latents_as_genes() -> None:
    with pytest.raises(DataError, match="num_latents: found 6; wanted a number from 1 to 5"):
        ProbabilisticPCA(6).fit(gaussian(0))
    flat = gaussian(0)
    x = flat["true_z"].to_numpy() @ np.random.default_rng(0).normal(size=(2, 6))
    with pytest.raises(DataError, match="no variance beyond 3 latents"):
        ProbabilisticPCA(3).fit(flat.assign(expression=(("cell", "gene"), x)))


def test_oracle_reaches_the_noise_and_prefers_causal_variables() -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=(2000, 3))
    c = np.cumsum(z, axis=1)
    x = 1.0 + c @ random.normal(size=(3, 8)) + 0.3 * random.normal(size=(2000, 8))
    data = eg.from_arrays(x).assign(true_c=(("cell", "true_latent"), c), true_z=(("cell", "true_latent"), z**3))
    train, test = data.isel(cell=slice(1000)), data.isel(cell=slice(1000, None))
    fitted = OracleLinearDecoder().fit(train)
    error = (fitted.predict_mean(test) - test["expression"]).to_numpy()
    assert np.sqrt(np.mean(error**2)) == pytest.approx(0.3, rel=0.03)
    entropy = 8 * (0.5 + np.log(0.3 * np.sqrt(2 * np.pi)))
    assert float(fitted.log_density(test).mean()) == pytest.approx(-entropy, abs=0.15)
    with pytest.raises(DataError, match="wanted a simulation"):
        OracleLinearDecoder().fit(train.drop_vars(["true_c", "true_z"]))


def test_totals_reproduce_the_empirical_means_of_targets() -> None:
    data = counts()
    fitted = TargetNegativeBinomial(shrink=False, rates="totals").fit(data)
    x, library, codes = (data[name].to_numpy() for name in ("expression", "library", "environment"))
    mean = fitted.predict_mean(data).to_numpy()
    rates = np.stack([x[codes == code].sum(axis=0) / library[codes == code].sum() for code in range(6)])
    np.testing.assert_allclose(mean, library[:, None] * rates[codes], rtol=1e-12)
    effects = fitted.effects()["log2_fold_change"]
    np.testing.assert_allclose(effects, np.log2(rates / rates[data["condition"].to_numpy() == "control"]), atol=1e-12)
    wanted = nbinom.logpmf(x, fitted.theta, fitted.theta / (fitted.theta + mean)).sum(axis=1)
    np.testing.assert_allclose(fitted.log_density(data), wanted, rtol=1e-12)


def test_equal_libraries_have_the_totals_as_maximum_of_the_likelihood() -> None:
    data = counts(genes=8)
    data = data.assign(library=("cell", np.full(480, 2.0)))
    by_totals, free = (
        TargetNegativeBinomial(shrink=False, rates=rates).fit(data) for rates in ("totals", "likelihood")
    )
    np.testing.assert_allclose(free.log_rates, by_totals.log_rates, atol=1e-6)


@pytest.mark.parametrize("shrink", [False, None])
def test_free_rates_and_dispersions_are_at_the_maximum_of_the_likelihood(shrink: bool | None) -> None:
    data = counts(genes=8)
    fitted = (PooledNegativeBinomial() if shrink is None else TargetNegativeBinomial(shrink=False)).fit(data)
    log_rates = torch.tensor(fitted.log_rates if shrink is False else fitted.log_rates[:1], requires_grad=True)
    log_theta = torch.tensor(np.log(fitted.theta), requires_grad=True)
    codes = data["environment"].to_numpy() * (shrink is False)
    log_mean = torch.tensor(np.log(data["library"].to_numpy()))[:, None] + log_rates[codes]
    law = torch.distributions.NegativeBinomial(log_theta.exp(), logits=log_mean - log_theta)
    total = law.log_prob(torch.tensor(data["expression"].to_numpy())).sum()
    assert total.item() == pytest.approx(float(fitted.log_density(data).sum()))
    inside = (fitted.theta > 1e-3) & (fitted.theta < 2900)
    by_rate, by_theta = torch.autograd.grad(total, (log_rates, log_theta))
    assert by_rate.abs().max() < 0.02  # of 80 cells, where a rate off by .01 gives about 1
    assert by_theta.abs().numpy()[inside].max() < 0.02


def test_inverse_dispersion_is_that_of_a_line_search() -> None:
    random = np.random.default_rng(0)
    mean = random.gamma(3.0, 1.0, (500, 3))
    theta = np.array([0.4, 2.0, 9.0])
    x = random.negative_binomial(theta, theta / (theta + mean)).astype(float)
    found = inverse_dispersion(torch.from_numpy(x), torch.from_numpy(mean)).numpy()
    for gene in range(3):

        def minus(log_theta: float, gene: int = gene) -> float:
            size = np.exp(log_theta)
            return -nbinom.logpmf(x[:, gene], size, size / (size + mean[:, gene])).sum()

        best = minimize_scalar(minus, bounds=(-5, 7), method="bounded", options={"xatol": 1e-8})
        assert np.log(found[gene]) == pytest.approx(best.x, abs=1e-4)
    poisson = torch.from_numpy(np.full((50, 1), 3.0))
    assert inverse_dispersion(poisson, poisson).item() == pytest.approx(np.exp(8))


@pytest.mark.parametrize("seed", range(3))
def test_shrinkage_finds_the_planted_effects_and_predicts_better(seed: int) -> None:
    data = counts(seed)
    train, test = data.isel(cell=slice(0, None, 2)), data.isel(cell=slice(1, None, 2))
    truth = data["true_beta"].to_numpy() / np.log(2)
    scores = {}
    for name, baseline in (
        ("shrunk", TargetNegativeBinomial()),
        ("free", TargetNegativeBinomial(shrink=False)),
        ("totals", TargetNegativeBinomial(shrink=False, rates="totals")),
        ("pooled", PooledNegativeBinomial()),
    ):
        fitted = baseline.fit(train)
        error = fitted.effects()["log2_fold_change"].to_numpy() - truth
        scores[name] = (np.sqrt(np.mean(error**2)), float(fitted.log_density(test).mean()))
    assert scores["shrunk"][0] < 0.5 * scores["free"][0]
    assert scores["shrunk"][1] > max(scores[name][1] for name in ("free", "totals", "pooled"))
    found = TargetNegativeBinomial().fit(train).effects()["effect_probability"].to_numpy()
    assert (found[truth != 0] > 0.9).all()
    assert (found[truth == 0] > 0.9).mean() < 0.02
    assert (found[0] == 0).all()  # the control


def test_permuted_labels_have_no_effects() -> None:
    ratios = []
    for seed in range(5):
        data = counts(seed)
        codes = np.random.default_rng(0).permutation(data["environment"].to_numpy())
        data = data.assign(environment=("cell", codes))
        effects = TargetNegativeBinomial().fit(data).effects()
        free = TargetNegativeBinomial(shrink=False).fit(data).effects()
        assert effects["effect_probability"].mean() < 0.01
        size = [np.sqrt(np.mean(e["log2_fold_change"].to_numpy() ** 2)) for e in (effects, free)]
        ratios.append(size[0] / size[1])
    assert np.mean(ratios) < 0.1


def test_without_a_control_effects_are_relative_to_the_common_rate() -> None:
    data = counts(0)
    truth = data["true_beta"].to_numpy() / np.log(2)
    shrunk = TargetNegativeBinomial(control=None).fit(data).effects()["log2_fold_change"].to_numpy()
    assert np.sqrt(np.mean((shrunk - truth) ** 2)) < 0.1
    free = TargetNegativeBinomial(control=None, shrink=False).fit(data)
    np.testing.assert_allclose(free.log_base, PooledNegativeBinomial().fit(data).log_base)


@pytest.mark.parametrize("shrink", [False, True])
def test_unseen_counts_and_environments_stay_finite(shrink: bool) -> None:
    data = counts(0)
    codes = data["environment"].to_numpy()
    x = data["expression"].to_numpy().copy()
    x[codes == 1, 7] = 0
    x[:, 9] = 0
    train = data.assign(expression=(("cell", "gene"), x)).isel(cell=np.flatnonzero(codes != 5))
    fitted = TargetNegativeBinomial(shrink=shrink).fit(train)
    assert np.isfinite(fitted.log_density(data)).all()
    effects = fitted.effects()
    assert np.isfinite(effects["log2_fold_change"]).all()
    assert (effects["log2_fold_change"].sel(condition="t5") == 0).all()
    assert effects["log2_fold_change"].sel(condition="t1").to_numpy()[7] < -3


def test_count_baselines_name_what_is_wrong() -> None:
    data = counts(0, size=10, genes=6)
    with pytest.raises(DataError, match="library: found variables"):
        PooledNegativeBinomial().fit(data.drop_vars("library"))
    with pytest.raises(DataError, match="library: found zero"):
        PooledNegativeBinomial().fit(data.assign(library=data["library"] * 0))
    with pytest.raises(DataError, match="environment: found"):
        PooledNegativeBinomial().fit(data.drop_vars("environment"))
    with pytest.raises(DataError, match="expression: found numbers that are no counts"):
        PooledNegativeBinomial().fit(data.assign(expression=data["expression"] + 0.5))
    with pytest.raises(DataError, match="control: found 'dmso'; wanted one of the conditions"):
        TargetNegativeBinomial(control="dmso").fit(data)
    with pytest.raises(DataError, match="found no training cells of 'control'"):
        TargetNegativeBinomial().fit(data.isel(cell=np.flatnonzero(data["environment"] > 0)))
    with pytest.raises(DataError, match="rates: found 'mean'"):
        PooledNegativeBinomial(rates="mean")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="rates: found 'totals' with shrink=True"):
        TargetNegativeBinomial(rates="totals")
    fitted = TargetNegativeBinomial().fit(data)
    with pytest.raises(DataError, match="condition: found"):
        fitted.predict_mean(data.assign_coords(condition=list("abcdef")))
