"""Warm starts: the point of a fit is carried into other orders, encoders and forms; wrong fits are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from notmad_use_cases import QUICK, data, from_prior

import embergraph as eg
from embergraph import models
from embergraph.inference.inputs import to_inputs
from embergraph.inference.messengers import isolated
from embergraph.methods import _notmad_plan as plan
from embergraph.methods._notmad_start import central_point, start_search, start_values
from embergraph.models import NOTMAD


@pytest.mark.parametrize(
    "options",
    [{}, {"order": "projected"}, {"archetypes": models.LowRankArchetypes(2)}, {"archetypes": models.FactorNetworks(3)}],
)
def test_the_search_starts_at_the_networks_of_the_earlier_fit(options: dict[str, Any]) -> None:
    train = data(60, scale="gene")
    start = from_prior(train, num_draws=1, **options)
    inputs = to_inputs(start.model.schema, train)
    relaxed = plan.search_model(start.model, 60)
    with isolated(0, dtype=torch.double):
        density, found = start_search(start, relaxed, inputs, num_steps=0, progress=False)
        point = plan.point_of(relaxed, density, found.points[0], inputs)
    values = start.global_draws(None)
    if start.model.archetypes.kind == "low_rank":  # the mask of the order is left to the later stages
        mask = start.model.archetypes_of(values)[0] != 0
        torch.testing.assert_close(point.archetypes * mask, start.model.archetypes_of(values)[0])
    else:
        torch.testing.assert_close(point.archetypes, start.model.archetypes_of(values)[0])
    torch.testing.assert_close(point.mixture, start.model.mixture_of(inputs["covariates"], values)[0])


def test_another_encoder_learns_the_same_mixture() -> None:
    train = data(200, scale="gene")
    C = torch.as_tensor(train["covariates"].values)
    for old, new in (("gp", "gp_joint"), ("linear", "nam"), ("nam", "gp")):
        start = from_prior(train, num_draws=1, encoder=old)
        other = NOTMAD.for_data(data(80, 3, scale="gene"), 3, encoder=new)
        with isolated(0, dtype=torch.double):
            values = start_values(start, other, C)
        theta = {n: v.unsqueeze(0).unsqueeze(1) for n, v in values.items() if n.startswith("encoder")}
        found = other.encoder(C, theta)[0].softmax(-1)
        wanted = start.model.mixture_of(C, start.global_draws(None))[0]
        assert float((found - wanted).abs().mean()) < 0.03, (old, new)


def test_the_point_is_of_one_order() -> None:
    start = from_prior(num_draws=12)
    orders = start.stored.values["order"]
    orders[0, :7] = orders[0, 0].clone()
    start.stored.statistics.clear()
    point = central_point(start)
    assert point["order"].tolist() == orders[0, 0, 0].tolist()
    same = (orders[0, :, 0] == orders[0, 0, 0]).all(-1)
    torch.testing.assert_close(point["edges"], start.stored.values["edges"][0, same, 0].median(0).values)


def test_noise_of_another_kind() -> None:
    train = data(60, scale="gene")
    C = torch.as_tensor(train["covariates"].values)
    free, equal = from_prior(train, noise="free", num_draws=1), from_prior(train, noise="equal", num_draws=1)
    with isolated(0, dtype=torch.double):
        assert start_values(free, equal.model, C)["sigma"].shape == ()
        assert start_values(equal, free.model, C)["sigma"].shape == (4,)


@pytest.mark.parametrize("order", ["uniform", "projected", None])
def test_a_warm_fit_skips_the_search_and_ends_as_well(order: Any) -> None:
    train, test = eg.split(data(300))
    options = QUICK | {"num_restarts": 2, "num_orders": 1, "num_guide_steps": 50, "num_bootstrap": 4}
    posterior = "auto" if order in ("projected", None) else "mean_field"
    model = NOTMAD.for_data(train, 3, order=order)
    early = train.isel(cell=slice(0, 150))
    cold = eg.fit(model, early, posterior=posterior, **options)
    warm = eg.fit(model, train, posterior=posterior, start=cold, **options)
    assert warm.settings["warm_start"] == cold.settings["routine"]
    assert warm.settings["num_restarts"] == 1
    scores = [eg.metrics.held_out_mse(fit.networks(test, interval=None), test) for fit in (cold, warm)]
    assert scores[1] < 1.1 * scores[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d.isel(gene=[0, 1, 2]), {}), "found genes"),
        (lambda d: (d.isel(covariate=[0, 1, 2]), {}), "found covariates"),
        (lambda d: (d, {"num_archetypes": 2}), "found num_archetypes 3; wanted 2"),
        (lambda d: (d, {"archetypes": models.LowRankArchetypes(2)}), "found archetypes"),
        (lambda d: (data(60, scale="common"), {}), "standardised by gene; wanted common"),
    ],
)
def test_fits_of_something_else_are_refused(change: Any, words: str) -> None:
    train, options = change(data(60, scale="gene"))
    model = NOTMAD.for_data(train, **({"num_archetypes": 3} | options))
    with pytest.raises(eg.DataError, match=words):
        eg.fit(model, train, start=from_prior(), **QUICK)
    assert np.isfinite(train["expression"]).all()
