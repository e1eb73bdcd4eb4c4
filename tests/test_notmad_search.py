"""The search for order and encoder with edges integrated out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
import xarray as xr

import embergraph as eg
from embergraph.inference.inputs import to_inputs
from embergraph.inference.messengers import isolated
from embergraph.methods import _notmad_plan as plan
from embergraph.methods import _notmad_search as search
from embergraph.models import NOTMAD


def found_by(
    data: xr.Dataset, num_archetypes: int = 3, num_restarts: int = 2, **options: Any
) -> tuple[NOTMAD, Any, np.ndarray, Any]:
    model = NOTMAD.for_data(data, num_archetypes, **options)
    inputs = to_inputs(model.schema, data)
    with isolated(0, dtype=torch.double), pyro.validation_enabled(False):
        relaxed = plan.search_model(model, data.sizes["cell"])
        density, found = search.search_order(model, relaxed, inputs, num_restarts=num_restarts, progress=False)
        point = plan.point_of(relaxed, density, found.points[found.best], inputs)
    return model, point, plan.starting_order(relaxed, point), found


def share_against(order: np.ndarray, networks: np.ndarray) -> float:
    """Share of the squared true effects that the order forbids."""
    rank = np.argsort(order)
    return float((networks**2 * (rank[:, None] > rank)).sum() / (networks**2).sum())


def explained(mixture: np.ndarray, truth: np.ndarray) -> float:
    design = np.concatenate([mixture, np.ones((len(mixture), 1))], 1)
    left = truth - design @ np.linalg.lstsq(design, truth, rcond=None)[0]
    return float(1 - (left**2).sum() / ((truth - truth.mean(0)) ** 2).sum())


@pytest.mark.parametrize(("scale", "seed"), [("common", 0), ("common", 4), ("gene", 0)])
def test_order_and_mixture_are_recovered(scale: Any, seed: int) -> None:
    raw = eg.datasets.simulated_notmad(seed, num_cells=750)
    data, _ = eg.standardize(raw, scale=scale)
    _, point, order, found = found_by(data)
    assert share_against(order, raw["true_networks"].values) < 0.01
    assert explained(point.mixture.numpy(), raw["true_mixture"].values) > 0.95
    assert explained(np.random.default_rng(0).dirichlet([1] * 3, 750), raw["true_mixture"].values) < 0.1
    assert abs(float(found.log_density[0] - found.log_density[1])) < 0.02 * 750, "starts agree"


def test_a_given_order_is_kept() -> None:
    data, _ = eg.standardize(eg.datasets.simulated_notmad(0, num_cells=200, num_genes=5))
    given = [3, 1, 4, 0, 2]
    _, _, order, _ = found_by(data, order=given)
    assert list(order) == given


def test_many_genes_choose_among_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = eg.datasets.simulated_notmad(0, num_cells=800, num_genes=40)
    data, _ = eg.standardize(raw)
    monkeypatch.setattr(search, "MAX_FEATURES", 90)
    monkeypatch.setattr(search, "FEW_FEATURES", 60)
    model, point, order, _ = found_by(data, num_restarts=1)
    assert search.has_many_genes(model)
    by_variance = share_against(data["expression"].values.var(0).argsort(), raw["true_networks"].values)
    assert share_against(order, raw["true_networks"].values) < 0.3 * by_variance
    assert explained(point.mixture.numpy(), raw["true_mixture"].values) > 0.8
    given = list(order[::-1])
    assert list(found_by(data, num_restarts=1, order=given)[1].archetypes.shape) == [3, 40, 40]


def test_which_models_collapse() -> None:
    data, _ = eg.standardize(eg.datasets.simulated_notmad(0, num_cells=50, num_genes=4))
    assert search.collapses(NOTMAD.for_data(data, 2))
    assert not search.collapses(NOTMAD.for_data(data, 2, order=None))
    assert not search.collapses(NOTMAD.for_data(data, 2, archetypes=eg.models.LowRankArchetypes(1)))
