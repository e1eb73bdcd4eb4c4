"""Baselines: known DAGs, closed forms, the algebra of intercepts, and the order in which they should come out."""

import networkx as nx
import numpy as np
import pytest
import scipy.optimize
import xarray as xr

from embergraph.baselines import (
    KMeansClustered,
    LabelClustered,
    Oracle,
    Population,
    VaryingCoefficientRidge,
    ZeroGraph,
    dagma,
    notears,
)
from embergraph.baselines.dags import _inverse
from embergraph.baselines.population import regress_on_parents
from embergraph.data import from_arrays, split
from embergraph.datasets.simulated import simulated_notmad
from embergraph.metrics import evaluate, gaussian_log_density, held_out_mse, residuals
from embergraph.models.parts.errors import DataError


def random_dag(p: int, seed: int, edge_probability: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    order = rng.permutation(p)
    weights = rng.uniform(0.6, 1.2, size=(p, p)) * rng.choice([-1, 1], size=(p, p))
    dag = np.zeros((p, p))
    dag[np.ix_(order, order)] = np.triu(weights * (rng.random((p, p)) < edge_probability), 1)
    return dag


def covariance_of(dag: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(np.eye(len(dag)) - dag)
    return inverse.T @ inverse


def simulate(dag: np.ndarray, num_cells: int, seed: int, mean: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return mean + rng.normal(size=(num_cells, len(dag))) @ np.linalg.inv(np.eye(len(dag)) - dag)


def grouped(num_groups: int = 2, num_genes: int = 4, num_cells: int = 120) -> xr.Dataset:
    """Groups of different networks and means, told apart by an indicator covariate and by the label."""
    groups = np.repeat(np.arange(num_groups), num_cells)
    x = np.concatenate([simulate(random_dag(num_genes, 10 + g), num_cells, g, mean=2.0 * g) for g in range(num_groups)])
    return from_arrays(x, np.eye(num_groups)[groups], environment=[f"condition {g}" for g in groups])


# One DAG from a covariance matrix


@pytest.mark.parametrize("p", [5, 8])
def test_dagma_and_notears_recover_an_equal_variance_dag(p: int) -> None:
    truth = random_dag(p, seed=p)
    sample = simulate(truth, 20_000, seed=p)
    covariance = np.cov(sample.T, bias=True)
    for learn in (dagma, notears):
        weights = learn(covariance, l1=0.02)
        np.testing.assert_array_equal(np.abs(weights) > 0.3, truth != 0)
        refitted = regress_on_parents(weights * (np.abs(weights) > 0.3), covariance, 20_000)
        np.testing.assert_allclose(refitted, truth, atol=0.05)
        # Far from another member of the equivalence class and from the reversed graph.
        assert not np.array_equal(np.abs(weights) > 0.3, truth.T != 0)
        assert nx.is_directed_acyclic_graph(nx.from_numpy_array(np.abs(weights) > 0.05, create_using=nx.DiGraph))


def test_without_penalty_dagma_finds_the_exact_weights_of_the_population() -> None:
    truth = random_dag(5, seed=1)
    np.testing.assert_allclose(dagma(covariance_of(truth), l1=0.0), truth, atol=5e-3)
    np.testing.assert_allclose(notears(covariance_of(truth), l1=0.0), truth, atol=5e-3)


def test_large_weights_that_leave_the_domain_of_dagma_are_still_found() -> None:
    truth = np.zeros((4, 4))
    truth[0, 1], truth[1, 2], truth[0, 2], truth[2, 3] = 3.0, -4.0, 2.5, 2.0
    for learn in (dagma, notears):
        np.testing.assert_array_equal(np.abs(learn(covariance_of(truth))) > 0.3, truth != 0)


def test_the_domain_of_dagma_is_the_spectral_radius() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(200):
        weights = 0.6 * rng.normal(size=(4, 4)) * (1 - np.eye(4))
        radius = np.abs(np.linalg.eigvals(weights**2)).max()
        assert (_inverse(weights, 0.9) is not None) == (radius < 0.9)
        inside.append(radius < 0.9)
    assert 0.1 < np.mean(inside) < 0.9


def test_the_penalty_shrinks_a_single_edge_as_the_lasso_does() -> None:
    # With variance 1 of the regulator the minimum of (w - 0.8)^2 / 2 + l1 |w| is at 0.8 - l1.
    covariance = covariance_of(np.array([[0.0, 0.8], [0.0, 0.0]]))
    for learn in (dagma, notears):
        np.testing.assert_allclose(learn(covariance, l1=0.1), [[0.0, 0.7], [0.0, 0.0]], atol=2e-3)
    assert np.abs(notears(covariance, l1=2.0)).max() < 1e-6


def test_refuses_matrices_that_are_no_covariance() -> None:
    for learn in (dagma, notears):
        with pytest.raises(DataError, match="shape"):
            learn(np.zeros((3, 2)))
        with pytest.raises(DataError, match="symmetric"):
            learn(np.array([[1.0, 0.5], [0.0, 1.0]]))
        with pytest.raises(DataError, match="finite"):
            learn(np.array([[1.0, np.nan], [np.nan, 1.0]]))


def test_regression_on_parents_is_ridge_of_a_normal_prior() -> None:
    rng = np.random.default_rng(3)
    dag = random_dag(4, seed=4)
    x = simulate(dag, 30, seed=5)
    x = x - x.mean(0)
    start = dag * rng.uniform(0.5, 1.0, size=dag.shape)
    refitted = regress_on_parents(start, x.T @ x / 30, 30)
    noise = np.mean((x - x @ start) ** 2)
    for target in range(4):
        parents = np.flatnonzero(dag[:, target])

        def minus_log_posterior(w: np.ndarray, parents: np.ndarray = parents, target: int = target) -> float:
            error = x[:, target] - x[:, parents] @ w
            return float(np.sum(error**2) / (2 * noise) + 4 * np.sum(w**2) / 2)

        if len(parents):
            best = scipy.optimize.minimize(minus_log_posterior, np.zeros(len(parents)), tol=1e-12)
            np.testing.assert_allclose(refitted[parents, target], best.x, atol=1e-5)
        assert not np.delete(refitted[:, target], parents).any()


# Baselines on data


def test_zero_graph_is_the_best_linear_mean_with_its_noise() -> None:
    data = simulated_notmad(0, num_cells=200, num_genes=4)
    x = data["expression"].to_numpy()
    plain = ZeroGraph(remove_covariate_means=False).fit(data).networks(data)
    assert held_out_mse(plain, data) == pytest.approx(x.var(0).mean())
    np.testing.assert_allclose(plain["sigma"], np.broadcast_to(x.std(0), x.shape))
    design = np.column_stack([np.ones(200), data["covariates"]])
    mean = design @ np.linalg.solve(design.T @ design, design.T @ x)
    by_covariates = ZeroGraph().fit(data).networks(data)
    np.testing.assert_allclose(by_covariates["intercept"], mean, atol=1e-10)
    assert held_out_mse(by_covariates, data) == pytest.approx(np.mean((x - mean) ** 2))


ALL = [
    ZeroGraph(),
    Population(),
    Population(method="notears", l1=0.05),
    KMeansClustered(2, method="notears"),
    LabelClustered(method="notears"),
    VaryingCoefficientRidge(),
]


@pytest.mark.parametrize("baseline", ALL, ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("remove", [True, False])
def test_intercepts_and_noise_fit_the_original_expression(baseline, remove: bool) -> None:
    data = grouped()
    settings = {**vars(baseline), "remove_covariate_means": remove}
    networks = type(baseline)(**settings).fit(data).networks(data)
    error = residuals(networks, data)
    # Shifted means never pass for noise: residuals average to 0 over all cells, and by group if means are by group.
    assert np.abs(error.mean(0)).max() < 1e-8
    if remove or isinstance(baseline, KMeansClustered | LabelClustered | VaryingCoefficientRidge):
        by_group = [error[data["environment"].to_numpy() == g].mean(0) for g in range(2)]
        assert np.abs(by_group).max() < 1e-8
    np.testing.assert_allclose(np.mean((error / networks["sigma"].to_numpy()) ** 2), 1.0, atol=0.02)
    for i in (0, -1):
        graph = nx.from_numpy_array(networks["network"].to_numpy()[i] != 0, create_using=nx.DiGraph)
        assert nx.is_directed_acyclic_graph(graph)


@pytest.mark.parametrize("baseline", ALL, ids=lambda b: type(b).__name__)
def test_prediction_needs_and_uses_no_expression_and_keeps_names(baseline) -> None:
    data = grouped()
    train, test = split(data)
    fitted = baseline.fit(train)
    networks = fitted.networks(test)
    xr.testing.assert_identical(networks, fitted.networks(test.drop_vars("expression")))
    xr.testing.assert_identical(networks, baseline.fit(train).networks(test))
    assert np.array_equal(networks["cell"], test["cell"])
    for dim in ("gene", "regulator", "target"):
        assert np.array_equal(networks[dim], test["gene"])
    scores = evaluate(networks, test)
    assert scores["mse"] > 0
    assert np.isfinite(scores["log_density"])


def test_removing_means_first_equals_doing_so_by_hand() -> None:
    data = grouped()
    mean = ZeroGraph().fit(data).networks(data)["intercept"].to_numpy()
    centred = data.assign(expression=data["expression"] - mean)
    by_hand = Population(remove_covariate_means=False).fit(centred).networks(centred)
    networks = Population().fit(data).networks(data)
    np.testing.assert_allclose(networks["network"], by_hand["network"], atol=1e-10)
    np.testing.assert_allclose(residuals(networks, data), residuals(by_hand, centred), atol=1e-10)
    assert gaussian_log_density(networks, data) == pytest.approx(gaussian_log_density(by_hand, centred))


@pytest.mark.parametrize("baseline", [KMeansClustered, LabelClustered])
def test_clustered_is_the_population_of_each_group(baseline) -> None:
    data = grouped(num_groups=3)
    settings = {"remove_covariate_means": False, "method": "notears"}
    arguments = (3,) if baseline is KMeansClustered else ()
    clustered = baseline(*arguments, **settings).fit(data).networks(data)
    for group in range(3):
        part = data.isel(cell=data["environment"].to_numpy() == group)
        alone = Population(**settings).fit(part).networks(part)
        found = clustered.sel(cell=part["cell"])
        np.testing.assert_allclose(found["network"], alone["network"], atol=1e-10)
        np.testing.assert_allclose(found["intercept"], alone["intercept"], atol=1e-10)
        np.testing.assert_allclose(found["sigma"], alone["sigma"], rtol=0.02)
    # Groups of one network each are told apart, and the population cannot follow.
    assert held_out_mse(clustered, data) < 0.8 * held_out_mse(Population(**settings).fit(data).networks(data), data)


def test_a_cluster_of_one_cell_has_no_edges_and_finite_noise() -> None:
    data = grouped()
    lonely = np.where(np.arange(240) == 0, "lonely", "other")
    data = data.assign(kind=("cell", lonely))
    everyone = LabelClustered("kind", method="notears").fit(data).networks(data)
    networks = everyone.isel(cell=0)
    assert not networks["network"].any()
    np.testing.assert_allclose(networks["intercept"], data["expression"][0], atol=1e-10)
    pooled = np.mean(residuals(everyone, data) ** 2, axis=0)
    np.testing.assert_allclose(networks["sigma"], np.sqrt(pooled / 2))


def test_new_cells_go_to_the_nearest_centre_and_unknown_labels_are_refused() -> None:
    data = grouped()
    kmeans = KMeansClustered(2, method="notears").fit(data)
    near = data.isel(cell=[0, 239]).assign(covariates=(("cell", "covariate"), [[0.2, 0.9], [0.8, 0.1]]))
    expected = data.isel(cell=[239, 0])
    np.testing.assert_array_equal(kmeans.networks(near)["network"], kmeans.networks(expected)["network"])

    text = data.assign(kind=("cell", np.where(data["environment"] == 0, "T", "B")))
    fitted = LabelClustered("kind", method="notears").fit(text)
    by_environment = LabelClustered(method="notears").fit(data)
    np.testing.assert_array_equal(fitted.networks(text)["network"], by_environment.networks(data)["network"])
    with pytest.raises(DataError, match="kind has levels without training cells: 'NK'"):
        fitted.networks(text.assign(kind=("cell", np.full(240, "NK"))))


def test_ridge_is_the_solution_of_its_normal_equations() -> None:
    data = simulated_notmad(2, num_cells=60, num_genes=4, num_covariates=2)
    x, c = data["expression"].to_numpy(), data["covariates"].to_numpy()
    fitted = VaryingCoefficientRidge(penalty=0.2, remove_covariate_means=False).fit(data)
    networks = fitted.networks(data, project=False)
    terms = np.column_stack([np.ones(60), c - c.mean(0)])
    for target in range(4):
        others = [a for a in range(4) if a != target]
        features = np.column_stack([terms] + [terms[:, [t]] * x[:, others] for t in range(3)])
        penalty = np.diag([0.0] * 3 + [0.2] * 9)
        beta = np.linalg.solve(features.T @ features / 60 + penalty, features.T @ x[:, target] / 60)
        np.testing.assert_allclose(networks["intercept"][:, target], terms @ beta[:3], atol=1e-10)
        expected = sum(terms[:, [t]] * beta[3 + 3 * t : 6 + 3 * t] for t in range(3))
        np.testing.assert_allclose(networks["network"].to_numpy()[:, others, target], expected, atol=1e-10)
    assert not networks["network"].to_numpy()[:, range(4), range(4)].any()
    with pytest.raises(DataError, match="cyclic in 60 of 60"):
        held_out_mse(networks, data)
    assert held_out_mse(fitted.networks(data), data) > held_out_mse(networks, data, allow_cyclic=True)


def test_cyclic_fits_score_below_the_noise_floor_and_projected_ones_do_not() -> None:
    train, test = split(simulated_notmad(0))
    fitted = VaryingCoefficientRidge().fit(train)
    floor = held_out_mse(Oracle().fit(train).networks(test), test)
    assert held_out_mse(fitted.networks(test, project=False), test, allow_cyclic=True) < floor - 0.05
    assert held_out_mse(fitted.networks(test), test) > floor + 0.1


@pytest.mark.parametrize("seed", [0, 3])
def test_population_recovers_part_of_what_the_truth_explains(seed: int) -> None:
    train, test = split(simulated_notmad(seed))
    scores = {
        type(baseline).__name__: evaluate(baseline.fit(train).networks(test), test)
        for baseline in (ZeroGraph(), Population(), KMeansClustered(3), Oracle())
    }
    mse = {name: score["mse"] for name, score in scores.items()}
    assert mse["ZeroGraph"] > mse["Population"] > mse["KMeansClustered"] > mse["Oracle"]
    assert mse["Oracle"] == pytest.approx(1.0, abs=4 * np.sqrt(2 / 2500))
    recovered = (mse["ZeroGraph"] - mse["Population"]) / (mse["ZeroGraph"] - mse["Oracle"])
    assert 0.3 < recovered < 0.95
    density = [scores[name]["log_density"] for name in ("ZeroGraph", "Population", "KMeansClustered", "Oracle")]
    assert density == sorted(density)
    assert scores["Population"]["deviation_correlation"] == 0.0
    assert scores["KMeansClustered"]["deviation_correlation"] > 0.1
    assert scores["Population"]["aupr"] > 2 * scores["Population"]["edge_rate"]
    assert scores["Oracle"]["aupr"] == 1.0


def test_refuses_data_and_settings_that_do_not_serve() -> None:
    data = grouped(num_cells=20)
    without = data.drop_vars(["covariates", "covariate"])
    with pytest.raises(DataError, match="covariates is missing"):
        Population().fit(without)
    with pytest.raises(DataError, match="covariates is missing"):
        KMeansClustered(2, remove_covariate_means=False).fit(without)
    with pytest.raises(DataError, match="covariates are 'other'"):
        ZeroGraph().fit(data).networks(data.assign_coords(covariate=["other", "covariate_1"]))
    with pytest.raises(DataError, match="2 distinct rows"):
        KMeansClustered(3).fit(data)
    with pytest.raises(DataError, match="tissue is missing"):
        LabelClustered("tissue").fit(data)
    with pytest.raises(DataError, match="true_networks is missing"):
        Oracle().fit(data)
    with pytest.raises(DataError, match="expression is missing"):
        Population().fit(data.drop_vars("expression"))
    with pytest.raises(DataError, match="method is 'ges'"):
        Population(method="ges")
    with pytest.raises(DataError, match="not negative"):
        Population(l1=-1.0)
    with pytest.raises(DataError, match="num_clusters is 0"):
        KMeansClustered(0)
    with pytest.raises(DataError, match="penalty is 0"):
        VaryingCoefficientRidge(penalty=0.0)


def test_population_needs_no_covariates_if_their_means_stay() -> None:
    data = grouped().drop_vars(["covariates", "covariate"])
    networks = Population(remove_covariate_means=False).fit(data).networks(data)
    assert np.isfinite(held_out_mse(networks, data))
