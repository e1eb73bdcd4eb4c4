"""Ablations: coarsened mixtures by hand, draw for draw, and what they must cost."""

import numpy as np
import pytest
import torch
import xarray as xr

import embergraph as eg
from embergraph.models.parts.errors import DataError
from embergraph.models.parts.projection import project

OPTIONS = {
    "uniform": {"posterior": "mean_field", "num_orders": 2, "num_guide_steps": 40},
    "projected": {},
}


def cells() -> tuple[xr.Dataset, xr.Dataset]:
    """Three groups of unequal size that say something of the covariates, but not all."""
    data, _ = eg.standardize(eg.datasets.simulated_notmad(1, num_cells=160, num_genes=4, num_covariates=2))
    first = data["covariates"].to_numpy()[:, 0]
    data["tissue"] = ("cell", np.array(["a", "b", "c"])[np.digitize(first, [-0.5, 0.7])])
    return eg.split(data)


@pytest.fixture(scope="module", params=list(OPTIONS))
def fit(request: pytest.FixtureRequest) -> eg.NOTMADFit:
    train, _ = cells()
    model = eg.models.NOTMAD.for_data(train, 3, order=request.param)
    return eg.fit(model, train, num_restarts=2, num_steps=60, progress=False, **OPTIONS[request.param])


def values_of(fit: eg.NOTMADFit, data: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, archetypes and intercepts of the draws that networks are reported from."""
    if fit.model.form == "projected":
        best = int(np.asarray(fit.stored.statistics["lp"]).mean(1).argmax())
        values = {name: v[best].median(0, keepdim=True).values for name, v in fit.stored.values.items()}
    else:
        values = fit.global_draws(400, 0)
    C = torch.as_tensor(data["covariates"].to_numpy())
    with torch.no_grad():
        Z, W = fit.model.mixture_of(C, values), fit.model.archetypes_of(values)
    return Z.numpy(), W.numpy(), values["intercepts"].reshape(len(W), 3, 4).numpy()


def by_hand(Z: np.ndarray, W: np.ndarray, b: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    draws = np.einsum("snk,skab->snab", Z, W)
    if form == "projected":
        draws = project(torch.as_tensor(draws)).networks.numpy()
    return project(torch.as_tensor(draws.mean(0))).networks.numpy(), np.einsum("snk,skb->nb", Z, b) / len(Z)


def one_hot(Z: np.ndarray) -> np.ndarray:
    return np.eye(3)[Z.argmax(-1)]


def test_each_ablation_is_its_coarsened_mixture(fit: eg.NOTMADFit) -> None:
    train, test = cells()
    Z, W, b = values_of(fit, test)
    of_train = values_of(fit, train)[0]
    groups = np.stack([of_train[:, train["tissue"] == t].mean(1) for t in ("a", "b", "c")], axis=1)
    averaged = groups[:, np.searchsorted(["a", "b", "c"], test["tissue"])]
    expected = {
        "one archetype a group": one_hot(averaged),
        "one archetype a cell": one_hot(Z),
        "mixture a group": averaged,
        "mixture a cell (full)": Z,
    }
    assert set(expected) == set(eg.ablations.ABLATIONS)
    errors = {}
    for name, (archetypes, level) in eg.ablations.ABLATIONS.items():
        found = eg.ablations.networks(fit, test, train, archetypes=archetypes, level=level, label="tissue")
        network, intercept = by_hand(expected[name], W, b, fit.model.form)
        np.testing.assert_allclose(found["network"], network, atol=1e-8)
        np.testing.assert_allclose(found["intercept"], intercept, atol=1e-8)
        assert found.attrs == {"archetypes": archetypes, "level": level, "label": "tissue" if level == "group" else ""}
        # Scored like any networks; the noise is what the same networks leave in the training cells.
        scores = eg.metrics.evaluate(found, test)
        assert np.isfinite(scores["log_density"])
        of_train_cells = eg.ablations.networks(fit, train, train, archetypes=archetypes, level=level, label="tissue")
        error = eg.metrics.residuals(of_train_cells, train)
        np.testing.assert_allclose(found["sigma"], np.sqrt((error**2).mean(0)))
        errors[name] = float((error**2).mean())
    assert min(errors, key=lambda name: errors[name]) == "mixture a cell (full)"
    assert errors["one archetype a group"] > 1.05 * errors["mixture a cell (full)"]


def test_the_full_model_is_what_the_fit_reports(fit: eg.NOTMADFit) -> None:
    train, test = cells()
    found, reported = eg.ablations.networks(fit, test, train), fit.networks(test)
    np.testing.assert_allclose(found["network"], reported["network"], atol=1e-8)
    np.testing.assert_allclose(found["intercept"], reported["intercept"], atol=1e-8)
    bare = eg.ablations.networks(fit, test.drop_vars(["expression", "tissue"]), train)
    xr.testing.assert_identical(found, bare)


def test_groups_of_equal_cells_and_groups_of_one_cell_change_nothing(fit: eg.NOTMADFit) -> None:
    train, _ = cells()
    train = train.assign(own=("cell", train["cell"].to_numpy()))
    for archetypes in ("one", "mixture"):
        alone = eg.ablations.networks(fit, train, train, archetypes=archetypes, level="group", label="own")
        cell = eg.ablations.networks(fit, train, train, archetypes=archetypes)
        np.testing.assert_allclose(alone["network"], cell["network"], atol=1e-8)
        np.testing.assert_allclose(alone["sigma"], cell["sigma"], atol=1e-8)


def test_the_random_state_of_the_caller_stays(fit: eg.NOTMADFit) -> None:
    train, test = cells()
    state = torch.get_rng_state()
    first = eg.ablations.networks(fit, test, train, level="group", label="tissue", seed=3)
    assert torch.equal(state, torch.get_rng_state())
    xr.testing.assert_identical(first, eg.ablations.networks(fit, test, train, level="group", label="tissue", seed=3))


def test_refuses_what_does_not_serve(fit: eg.NOTMADFit) -> None:
    train, test = cells()
    for options, message in [
        ({"archetypes": "two"}, "archetypes is 'two'"),
        ({"level": "tissue"}, "level is 'tissue'"),
        ({"level": "group", "label": "organ"}, "organ is missing"),
    ]:
        with pytest.raises(DataError, match=message):
            eg.ablations.networks(fit, test, train, **options)
    new = test.assign(tissue=("cell", np.full(test.sizes["cell"], "d")))
    with pytest.raises(DataError, match="levels without training cells: 'd'"):
        eg.ablations.networks(fit, new, train, level="group", label="tissue")
    with pytest.raises(DataError, match="covariates"):
        eg.ablations.networks(fit, test.drop_vars(["covariates", "covariate"]), train)
