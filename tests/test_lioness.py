"""LIONESS: its formula by brute force, what reads the expression of a new cell, and what does not."""

import networkx as nx
import numpy as np
import pytest
import xarray as xr

from embergraph.baselines import LIONESS, Population
from embergraph.baselines.population import edge_penalty
from embergraph.data import from_arrays, split
from embergraph.datasets.simulated import simulated_notmad
from embergraph.metrics import evaluate, residuals
from embergraph.models.parts.errors import DataError

FAST = {"method": "notears", "l1": 0.05}


def cells(seed: int = 0, num_cells: int = 40, mean: float = 3.0) -> xr.Dataset:
    data = simulated_notmad(seed, num_cells=num_cells, num_genes=5, num_covariates=2)
    return data.assign(expression=data["expression"] + mean)


def refit(values: np.ndarray, support: np.ndarray, penalty: float) -> np.ndarray:
    """Ridge regressions on given parents from the cells alone, centred on their own mean."""
    x = values - values.mean(0)
    out = np.zeros(support.shape)
    for target in range(len(support)):
        parents = np.flatnonzero(support[:, target])
        gram = x[:, parents].T @ x[:, parents] + penalty * np.eye(len(parents))
        out[parents, target] = np.linalg.solve(gram, x[:, parents].T @ x[:, target])
    return out


def population_parts(settings: LIONESS, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Support and penalty of the population fit."""
    covariance = np.cov(values.T, bias=True)
    kept = settings._kept(covariance)
    return kept, edge_penalty(kept, covariance)


@pytest.mark.parametrize("edges", ["population", "order"])
@pytest.mark.parametrize("remove", [True, False])
def test_training_networks_are_the_formula_with_brute_force_refits(edges: str, remove: bool) -> None:
    data = cells()
    settings = LIONESS(edges=edges, remove_covariate_means=remove, **FAST)
    found = settings.fit(data).training_networks(data)
    x = data["expression"].to_numpy()
    if remove:
        design = np.column_stack([np.ones(40), data["covariates"]])
        x = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    kept, penalty = population_parts(settings, x)
    support = kept != 0
    if edges == "order":
        order = list(nx.lexicographical_topological_sort(nx.from_numpy_array(kept, create_using=nx.DiGraph)))
        support = np.zeros((5, 5), dtype=bool)
        support[np.ix_(order, order)] = np.triu(np.ones((5, 5), dtype=bool), 1)
    whole = refit(x, support, penalty)
    for i in range(40):
        without = refit(np.delete(x, i, 0), support, penalty)
        np.testing.assert_allclose(found["network"][i], 40 * (whole - without) + without, rtol=1e-4, atol=1e-5)
    assert found.attrs["uses_expression"] == 1
    assert found.attrs["held_out"] == "none"


def test_networks_of_new_cells_from_their_expression_are_fits_to_one_more_cell() -> None:
    train, test = split(cells(num_cells=60))
    settings = LIONESS(held_out="expression", remove_covariate_means=False, **FAST)
    found = settings.fit(train).networks(test)
    x, new = train["expression"].to_numpy(), test["expression"].to_numpy()
    kept, penalty = population_parts(settings, x)
    whole = refit(x, kept != 0, penalty)
    for i, cell in enumerate(new):
        more = refit(np.vstack([x, cell]), kept != 0, penalty)
        np.testing.assert_allclose(found["network"][i], 46 * (more - whole) + whole, rtol=1e-4, atol=1e-5)
    assert found.attrs["uses_expression"] == 1


def test_the_base_is_the_population_network_and_networks_centre_on_its_mean() -> None:
    data = cells()
    population = Population(**FAST).fit(data).networks(data)
    fitted = LIONESS(**FAST).fit(data)
    np.testing.assert_allclose(fitted.predict.refits.network, population["network"][0], atol=1e-10)
    # The mean of all networks is near the population network, nearer with more cells; single ones are far from it.
    large = LIONESS(**FAST).fit(cells(num_cells=1000)).predict
    assert abs(large.own.mean(0) - large.refits.network).max() < 0.02
    assert large.own.std(0).max() > 1.0
    # A cell at the mean of its covariates is predicted there by any network: residuals of the mean expression are 0.
    networks = LIONESS(remove_covariate_means=False, **FAST).fit(data).networks(data)
    mean = data.assign(expression=xr.ones_like(data["expression"]) * data["expression"].mean("cell"))
    np.testing.assert_allclose(residuals(networks, mean), 0.0, atol=1e-10)


@pytest.mark.parametrize("count", [1, 7, None])
def test_new_cells_without_expression_get_the_mean_network_of_their_nearest_training_cells(count: int | None) -> None:
    train, test = split(cells(num_cells=60))
    # One covariate on a far larger scale, and a constant one, must not decide.
    scaled = [d.assign(covariates=d["covariates"] * [1.0, 1e3]) for d in (train, test)]
    fitted = LIONESS(num_neighbors=count, **FAST).fit(scaled[0])
    found = fitted.networks(scaled[1])
    assert found.attrs["uses_expression"] == 0
    assert found.attrs["held_out"] == "covariates"
    xr.testing.assert_identical(found, fitted.networks(scaled[1].drop_vars("expression")))
    wild = scaled[1].assign(expression=scaled[1]["expression"] * 100)
    xr.testing.assert_identical(found, fitted.networks(wild))
    own = fitted.training_networks(scaled[0])["network"].to_numpy()
    c = train["covariates"].to_numpy()
    number = found.attrs["num_neighbors"]
    assert number == count or (count is None and number in (5, 10, 20, 40, 45))
    for i in range(3):
        distance = (((test["covariates"].to_numpy()[i] - c) / c.std(0)) ** 2).sum(1)
        expected = own[np.argsort(distance)[:number]].mean(0)
        np.testing.assert_allclose(found["network"][i], expected, atol=1e-10)


def test_the_number_of_neighbours_is_chosen_without_a_cells_own_network() -> None:
    data = cells(1, num_cells=200)
    chosen = LIONESS(**FAST).fit(data)
    own, x = chosen.predict.own, data["expression"].to_numpy()
    design = np.column_stack([np.ones(200), data["covariates"]])
    x = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    c = data["covariates"].to_numpy() / data["covariates"].to_numpy().std(0)
    distance = ((c[:, None] - c[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1)
    errors = {}
    for count in (5, 10, 20, 40, 80, 160, 199):
        network = own[order[:, :count]].mean(1)
        errors[count] = np.mean((x - np.einsum("na,nab->nb", x, network)) ** 2, axis=0)
    best = min(errors, key=lambda k: errors[k].sum())
    assert chosen.networks(data).attrs["num_neighbors"] == {199: 200}.get(best, best)
    np.testing.assert_allclose(chosen.networks(data)["sigma"][0], np.sqrt(errors[best]), rtol=1e-8)


def test_structure_refits_are_population_fits_without_and_with_a_cell() -> None:
    train, test = split(cells(2, num_cells=12, mean=0.0))
    options = {"remove_covariate_means": False, "method": "notears", "l1": 0.2}
    fitted = LIONESS(refits="structure", held_out="expression", **options).fit(train)

    def network(x: np.ndarray) -> np.ndarray:
        return Population(**options).fit(from_arrays(x)).networks(from_arrays(x))["network"].to_numpy()[0]

    x = train["expression"].to_numpy()
    whole = network(x)
    own, new = fitted.training_networks(train)["network"].to_numpy(), fitted.networks(test)["network"].to_numpy()
    for i in (0, 5):
        without = network(np.delete(x, i, 0))
        assert_kept_or_dropped(own[i], 9 * (whole - without) + without)
    more = network(np.vstack([x, test["expression"].to_numpy()[0]]))
    assert_kept_or_dropped(new[0], 10 * (more - whole) + whole)
    for w in [*own, *new]:
        assert nx.is_directed_acyclic_graph(nx.from_numpy_array(w != 0, create_using=nx.DiGraph))


def assert_kept_or_dropped(projected: np.ndarray, raw: np.ndarray) -> None:
    """A projection keeps entries as they are or drops them."""
    kept = projected != 0
    np.testing.assert_allclose(projected[kept], raw[kept], atol=1e-8)
    assert kept.sum() >= 0.5 * (np.abs(raw) > 1e-9).sum()


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_neighbours_see_contexts_and_single_cells_are_noise(seed: int) -> None:
    train, test = split(simulated_notmad(seed, num_cells=800, num_genes=6, num_covariates=2))
    rivals = {"lioness": LIONESS(**FAST), "own": LIONESS(held_out="expression", **FAST), "one": Population(**FAST)}
    scores = {name: evaluate(rival.fit(train).networks(test), test) for name, rival in rivals.items()}
    assert scores["lioness"]["mse"] < scores["one"]["mse"]
    assert scores["lioness"]["deviation_correlation"] > 0.5
    # Even with the cell's own expression at hand, a network from one cell predicts it worse than that of all.
    assert scores["own"]["mse"] > 1.5 * scores["one"]["mse"]
    assert scores["own"]["deviation_correlation"] < 0.5


def test_refuses_what_does_not_serve() -> None:
    train, test = split(cells())
    for settings, message in [
        ({"held_out": "x"}, "held_out is 'x'"),
        ({"refits": "x"}, "refits is 'x'"),
        ({"edges": "x"}, "edges is 'x'"),
        ({"num_neighbors": 0}, "num_neighbors is 0"),
        ({"refits": "structure", "edges": "order"}, "wanted edges 'population'"),
    ]:
        with pytest.raises(DataError, match=message):
            LIONESS(**settings)
    with pytest.raises(DataError, match="wanted at least 3"):
        LIONESS(**FAST).fit(train.isel(cell=[0, 1]))
    bare = train.drop_vars(["covariates", "covariate"])
    with pytest.raises(DataError, match="covariates is missing"):
        LIONESS(remove_covariate_means=False, **FAST).fit(bare)
    fitted = LIONESS(held_out="expression", remove_covariate_means=False, **FAST).fit(bare)
    with pytest.raises(DataError, match="wanted the expression of new cells"):
        fitted.networks(test.drop_vars("expression"))
    with pytest.raises(DataError, match="genes are"):
        fitted.networks(test.isel(gene=[1, 0, 2, 3, 4]))
    with pytest.raises(DataError, match="of the fit"):
        fitted.training_networks(test)
