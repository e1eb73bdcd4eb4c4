"""Metrics against values worked out by hand and by independent formulas."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import multivariate_normal

from embergraph.data import from_arrays
from embergraph.datasets.simulated import simulated_notmad
from embergraph.metrics import (
    acyclic_share,
    aupr,
    best_f1,
    deviation_correlation,
    edge_f1,
    edge_rate,
    evaluate,
    gaussian_log_density,
    held_out_mse,
    interval_coverage,
    matched_archetype_error,
    mixture_r2,
    pooled_aupr,
    relative_weight_error,
    residuals,
    skeleton_aupr,
    structural_hamming_distance,
    varsortability,
)
from embergraph.models.parts.errors import DataError


def as_networks(data: xr.Dataset, network: np.ndarray, intercept=0.0, sigma=1.0) -> xr.Dataset:
    n, p = data.sizes["cell"], data.sizes["gene"]
    genes = data["gene"].to_numpy()
    return xr.Dataset(
        {
            "network": (("cell", "regulator", "target"), np.broadcast_to(network, (n, p, p))),
            "intercept": (("cell", "gene"), np.broadcast_to(intercept, (n, p))),
            "sigma": ("gene", np.broadcast_to(sigma, p)),
        },
        coords={"cell": data["cell"], "gene": genes, "regulator": genes, "target": genes},
    )


@pytest.fixture
def data() -> xr.Dataset:
    return simulated_notmad(0, num_cells=40, num_genes=4, num_archetypes=2)


@pytest.fixture
def random_networks(data: xr.Dataset) -> xr.Dataset:
    rng = np.random.default_rng(0)
    network = np.triu(rng.normal(size=(40, 4, 4)), 1)
    return as_networks(data, network, rng.normal(size=(40, 4)), rng.uniform(0.5, 2.0, size=4))


def test_density_is_that_of_the_normal_distribution_which_the_networks_imply(data, random_networks) -> None:
    expected = []
    for i in range(40):
        inverse = np.linalg.inv(np.eye(4) - random_networks["network"].to_numpy()[i])
        covariance = inverse.T @ np.diag(random_networks["sigma"].to_numpy() ** 2) @ inverse
        mean = random_networks["intercept"].to_numpy()[i] @ inverse
        expected.append(multivariate_normal(mean, covariance).logpdf(data["expression"].to_numpy()[i]))
    assert gaussian_log_density(random_networks, data) == pytest.approx(np.mean(expected), rel=1e-10)


def test_density_of_cyclic_networks_has_its_jacobian(data) -> None:
    network = np.array([[0, 0.4, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0.3], [0, 0, 0, 0]])
    networks = as_networks(data, network, 0.0, 1.5)
    inverse = np.linalg.inv(np.eye(4) - network)
    expected = multivariate_normal(np.zeros(4), 1.5**2 * inverse.T @ inverse).logpdf(data["expression"].to_numpy())
    with pytest.raises(DataError, match="cyclic in 40 of 40"):
        gaussian_log_density(networks, data)
    with pytest.raises(DataError, match="below the noise floor"):
        held_out_mse(networks, data)
    assert gaussian_log_density(networks, data, allow_cyclic=True) == pytest.approx(expected.mean(), rel=1e-10)
    expected_mse = np.mean((data["expression"].to_numpy() @ (np.eye(4) - network)) ** 2)
    assert held_out_mse(networks, data, allow_cyclic=True) == pytest.approx(expected_mse)


def test_density_takes_a_scale_for_every_cell(data, random_networks) -> None:
    by_cell = random_networks.assign(sigma=random_networks["sigma"].broadcast_like(random_networks["intercept"]))
    assert gaussian_log_density(by_cell, data) == gaussian_log_density(random_networks, data)


def test_mse_of_the_empty_graph_is_the_variance_and_the_truth_reaches_the_floor() -> None:
    data = simulated_notmad(1, num_cells=3000)
    x = data["expression"].to_numpy()
    empty = as_networks(data, np.zeros((10, 10)), x.mean(0))
    assert held_out_mse(empty, data) == pytest.approx(x.var(0).mean())
    unit = data.assign(expression=(data["expression"] - x.mean(0)) / x.std(0))
    assert held_out_mse(as_networks(unit, np.zeros((10, 10))), unit) == pytest.approx(1.0)
    truth = as_networks(data, data["true_networks"].to_numpy())
    assert held_out_mse(truth, data) == pytest.approx(1.0, abs=4 * np.sqrt(2 / 30000))
    assert gaussian_log_density(truth, data) == pytest.approx(-5 * np.log(2 * np.pi * np.e), abs=0.15)


def test_dims_are_found_by_name(data, random_networks) -> None:
    turned = random_networks.transpose("target", "gene", "regulator", "cell")
    assert held_out_mse(turned, data) == held_out_mse(random_networks, data.transpose())
    assert evaluate(turned, data.transpose()) == evaluate(random_networks, data)
    np.testing.assert_array_equal(residuals(turned, data), residuals(random_networks, data))


def test_refuses_networks_of_other_cells_or_without_parts(data, random_networks) -> None:
    with pytest.raises(DataError, match="along cell"):
        held_out_mse(random_networks.isel(cell=slice(None, None, -1)), data)
    with pytest.raises(DataError, match="along regulator"):
        held_out_mse(random_networks.isel(regulator=[1, 0, 2, 3]), data)
    with pytest.raises(DataError, match="lack 'intercept'"):
        residuals(random_networks.drop_vars("intercept"), data)
    with pytest.raises(DataError, match="lack 'sigma'"):
        gaussian_log_density(random_networks.drop_vars("sigma"), data)
    with pytest.raises(DataError, match="sigma has the smallest value 0"):
        gaussian_log_density(random_networks.assign(sigma=0 * random_networks["sigma"]), data)
    broken = random_networks.copy(deep=True)
    broken["network"][7, 0, 1] = np.nan
    with pytest.raises(DataError, match="not finite in cells 'cell_7'"):
        held_out_mse(broken, data)
    with pytest.raises(DataError, match="dims"):
        residuals(random_networks.isel(regulator=0), data)


TRUTH = np.array([[0, 0.8, 0], [0, 0, -0.6], [0, 0.04, 0]])  # two edges; 0.04 counts as none


def test_structure_of_a_worked_example() -> None:
    score = np.array([[9, 0.5, 0.4], [0, 9, -0.1], [0.2, 0, 9]])
    # By size: 0-1 (true), 0-2, 2-0, 1-2 (true), then zeros: precisions at the true ones are 1/1 and 2/4.
    assert aupr(score, TRUTH) == pytest.approx((1 + 0.5) / 2)
    assert edge_rate(TRUTH) == pytest.approx(2 / 6)
    assert edge_f1(score, TRUTH, at=0.3) == pytest.approx(2 * 1 / (2 + 2))
    assert best_f1(score, TRUTH) == pytest.approx(2 / 3)
    # Pairs by size: 01 (true) 0.5, 02 0.4, 12 (true) 0.1.
    assert skeleton_aupr(score, TRUTH) == pytest.approx((1 + 2 / 3) / 2)
    assert structural_hamming_distance(score, TRUTH) == 1.0  # the pair 0, 2
    assert structural_hamming_distance(score, TRUTH, at=0.3) == 2.0  # 0-2 extra, 1-2 missing
    assert structural_hamming_distance(score.T, TRUTH) == 3.0  # both true edges reversed, 0-2 extra
    assert structural_hamming_distance(TRUTH, TRUTH) == 0.0
    # Reversed edges cost the direction but not the skeleton.
    assert skeleton_aupr(score.T, TRUTH) == skeleton_aupr(score, TRUTH)
    assert aupr(TRUTH.T, TRUTH) < 0.5 < aupr(TRUTH, TRUTH) == 1.0


def test_one_network_is_held_against_those_of_all_cells() -> None:
    truths = np.stack([TRUTH, np.zeros((3, 3))])
    assert aupr(TRUTH, truths) == 1.0  # the cell without edges does not count
    assert aupr(np.stack([TRUTH.T, TRUTH]), np.stack([TRUTH, TRUTH])) == pytest.approx((aupr(TRUTH.T, TRUTH) + 1) / 2)
    assert pooled_aupr(TRUTH, truths) == pytest.approx(0.5)
    assert structural_hamming_distance(TRUTH, truths) == 1.0
    assert edge_rate(truths) == pytest.approx(1 / 6)
    assert relative_weight_error(TRUTH, truths) == pytest.approx(1.0)
    assert relative_weight_error(0 * TRUTH, truths) == 1.0
    assert relative_weight_error(truths, truths) == 0.0


def test_structure_without_edges_is_not_a_number() -> None:
    empty = np.zeros((2, 3, 3))
    for function in (aupr, pooled_aupr, best_f1, skeleton_aupr, relative_weight_error):
        assert np.isnan(function(TRUTH, empty))
    assert edge_f1(empty, empty, at=0.1) == 1.0
    assert edge_f1(TRUTH, empty, at=0.1) == 0.0
    assert best_f1(empty, TRUTH) == pytest.approx(2 * (1 / 3) / (4 / 3))  # all or nothing
    with pytest.raises(DataError, match="square"):
        aupr(np.zeros(3), TRUTH)


def test_deviation_correlation_is_zero_for_a_population_and_blind_to_the_mean() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(50, 4, 4))
    population = np.broadcast_to(rng.normal(size=(4, 4)) / 3, truth.shape)
    assert deviation_correlation(population, truth) == 0.0
    assert deviation_correlation(population[0], truth) == 0.0
    assert deviation_correlation(2.5 * truth + population, truth) == pytest.approx(1.0)
    assert deviation_correlation(-truth, truth) == pytest.approx(-1.0)
    noisy = truth + rng.normal(size=truth.shape)
    expected = np.corrcoef((noisy - noisy.mean(0)).ravel(), (truth - truth.mean(0)).ravel())[0, 1]
    assert deviation_correlation(noisy, truth) == pytest.approx(expected)


def test_interval_coverage_of_a_worked_example() -> None:
    truth = np.array([[0, 0.1, 0.3], [0.7, 0, 2.0], [0.04, 0, 0]])
    lower = np.array([[5, 0.0, 0.35], [0.6, 5, -1.0], [0.01, -1, 5]], dtype=float)
    upper = np.array([[5, 0.2, 0.40], [0.7, 5, 1.9], [0.09, 1, 5]], dtype=float)
    table = interval_coverage(lower, upper, truth)
    assert dict(zip(table["edges"].to_numpy(), table["coverage"].to_numpy(), strict=True)) == {
        "absent": 0.5,  # 0.04 is no edge, and (0.01, 0.09) lacks 0
        "true": 0.5,
        "0.05-0.2": 1.0,
        "0.2-0.5": 0.0,
        "0.5-1": 1.0,  # ends belong to the interval
        "above 1": 0.0,
    }
    assert table["count"].values.tolist() == [2, 4, 1, 1, 1, 1]
    np.testing.assert_allclose(table["width"], [1.04, (0.2 + 0.05 + 0.1 + 2.9) / 4, 0.2, 0.05, 0.1, 2.9])
    assert np.isnan(interval_coverage(lower, upper, 0 * truth)["coverage"].sel(edges="true"))
    with pytest.raises(DataError, match="lower is above upper"):
        interval_coverage(upper, lower, truth)


def test_calibrated_intervals_have_their_nominal_coverage() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(400, 5, 5))
    centre = truth + 0.3 * rng.normal(size=truth.shape)
    half = 1.645 * 0.3
    assert interval_coverage(centre - half, centre + half, truth)["coverage"].sel(edges="true") == pytest.approx(
        0.9, abs=0.02
    )


def test_acyclic_share() -> None:
    networks = np.zeros((2, 3, 3))
    networks[0, 0, 1], networks[0, 1, 0] = 0.9, 0.15
    networks[1, 0, 1], networks[1, 1, 2], networks[1, 2, 0] = 0.9, -0.9, 0.25
    share = acyclic_share(networks)
    assert dict(zip(share["threshold"].values.tolist(), share.values.tolist(), strict=True)) == {
        0.0: 0.0,
        0.05: 0.0,
        0.1: 0.0,
        0.2: 0.5,
        0.3: 1.0,
    }


def test_mixture_r2_needs_no_matching() -> None:
    rng = np.random.default_rng(3)
    z = rng.dirichlet(np.ones(3), size=200)
    assert mixture_r2(z, z[:, ::-1]) == pytest.approx(1.0)
    assert mixture_r2(z, z @ rng.dirichlet(np.ones(5), size=3)) == pytest.approx(1.0)
    assert mixture_r2(z, rng.dirichlet(np.ones(3), size=200)) < 0.1
    assert mixture_r2(z, np.full((200, 3), 1 / 3)) == pytest.approx(0.0)
    half = mixture_r2(z, z + rng.normal(scale=z.std(), size=z.shape))
    assert 0.2 < half < 0.8


def test_archetypes_are_matched_whatever_their_order_and_number() -> None:
    rng = np.random.default_rng(4)
    true = rng.normal(size=(3, 4, 4))
    assert matched_archetype_error(true, true[[2, 0, 1]]) == pytest.approx(0.0)
    assert matched_archetype_error(true, np.concatenate([true, rng.normal(size=(2, 4, 4))])) == pytest.approx(0.0)
    missing = matched_archetype_error(true, true[[2, 0]])
    assert missing == pytest.approx(np.sum(true[1] ** 2) / np.sum(true**2))
    noise = 0.1 * rng.normal(size=true.shape)
    assert matched_archetype_error(true, (true + noise)[[1, 2, 0]]) == pytest.approx(np.sum(noise**2) / np.sum(true**2))


def test_varsortability_of_a_chain() -> None:
    def chain(*variances: float) -> xr.Dataset:
        rng = np.random.default_rng(5)
        unit = rng.normal(size=(50, 3))
        unit = unit / unit.std(0)
        data = from_arrays(unit * np.sqrt(variances))
        graph = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
        return data.assign(reference_graph=(("regulator", "target"), graph))

    # Directed paths: 0-1, 1-2, and 0-2 by way of 1.
    assert varsortability(chain(1, 2, 3)) == 1.0
    assert varsortability(chain(3, 2, 1)) == 0.0
    assert varsortability(chain(1, 3, 2)) == pytest.approx(2 / 3)
    assert varsortability(chain(1, 1, 1)) == 0.5
    with pytest.raises(DataError, match="reference_graph"):
        varsortability(from_arrays(np.random.default_rng(6).normal(size=(5, 3))))


def test_raw_simulations_are_sortable_by_variance_and_standardised_ones_are_not() -> None:
    raw, standard = [], []
    for seed in range(5):
        data = simulated_notmad(seed)
        raw.append(varsortability(data))
        scaled = data.assign(expression=data["expression"] / data["expression"].std("cell"))
        standard.append(varsortability(scaled))
    assert min(raw) > 0.85
    assert standard == [0.5] * 5


def test_evaluate_reports_what_the_data_can_tell(data) -> None:
    truth = as_networks(data, data["true_networks"].to_numpy())
    scores = evaluate(truth.assign(mixture=data["true_mixture"], archetypes=data["true_archetypes"]), data)
    perfect = {
        "aupr": 1.0,
        "pooled_aupr": 1.0,
        "best_f1": 1.0,
        "shd": 0.0,
        "skeleton_aupr": 1.0,
        "relative_weight_error": 0.0,
    }
    perfect |= {"deviation_correlation": 1.0, "mixture_r2": 1.0, "archetype_error": 0.0}
    assert {name: scores[name] for name in perfect} == pytest.approx(perfect)
    assert set(scores) == set(perfect) | {"mse", "log_density", "edge_rate"}

    bare = data.drop_vars(["true_networks", "true_mixture", "true_archetypes"])
    assert set(evaluate(truth, bare)) == {"mse", "log_density"}
    graph = bare.assign(reference_graph=(data["true_networks"] != 0).any("cell"))
    assert evaluate(truth, graph)["skeleton_aupr"] > 0.9
    assert "relative_weight_error" not in evaluate(truth, graph)
