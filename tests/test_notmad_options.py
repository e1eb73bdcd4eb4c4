"""All options of NOTMAD together: density, prior, saving for every pair of options; fits for every option."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from notmad_options import OPTIONS, Choice, allowed, cells, each_once, options_of, pairwise, possible
from pyro import poutine

import embergraph as eg
from embergraph.inference.density import LogDensity
from embergraph.inference.messengers import isolated, latent_sites
from embergraph.models import NOTMAD, Archetypes, SEMLikelihood
from embergraph.models.parts.edge_priors import StructuredPrior
from embergraph.models.parts.projection import is_acyclic

PAIRS = list(pairwise())
SMALL = {
    "num_restarts": 2, "num_steps": 15, "num_orders": 2, "num_warmup": 5, "num_draws": 20, "num_guide_steps": 20,
    "progress": False,
}  # fmt: skip


def label(choice: Choice) -> str:
    return "-".join(choice.values())


def model_of(choice: Choice, data: xr.Dataset) -> NOTMAD:
    return NOTMAD.for_data(data, 2, **options_of(choice)).double()


def inputs_of(data: xr.Dataset) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(data[name].values) for name in ("covariates", "expression")}


def draw(model: NOTMAD, inputs: dict[str, torch.Tensor], seed: int) -> Any:
    with isolated(seed, dtype=torch.double):
        return poutine.trace(model).get_trace(**inputs)


def test_the_registry_is_complete_and_every_pair_is_tried() -> None:
    assert {"gaussian", "student", "logistic", "binary"} == set(SEMLikelihood.kinds)
    assert set(OPTIONS["archetypes"]) == set(Archetypes.kinds)
    assert set(StructuredPrior.kinds) == {"shared_spike_slab"}
    met = {frozenset(pair) for choice in PAIRS for pair in itertools.combinations(choice.items(), 2)}
    assert frozenset({("order", "projected"), ("mixing", "identity")}) in met
    assert frozenset({("likelihood", "binary"), ("edge_prior", "shared")}) in met
    wanted = {
        frozenset({(a, x), (b, y)})
        for a, b in itertools.combinations(OPTIONS, 2)
        for x, y in itertools.product(OPTIONS[a], OPTIONS[b])
        if possible({a: x, b: y})
    }
    assert wanted <= met
    assert len(wanted) > 600


@pytest.mark.parametrize("choice", PAIRS, ids=label)
def test_model(choice: Choice) -> None:
    """Draws on a tensor axis score as one by one; values give the model's networks; settings rebuild."""
    data = cells(choice["likelihood"], 12)
    inputs, model = inputs_of(data), model_of(choice, data)
    samples = getattr(model.acyclicity, "scope", None) in ("samples", "mean")
    if samples:
        model.acyclicity.num_rows = 12
    traces = [draw(model, inputs, seed) for seed in range(3)]
    latent = [{name: site["value"] for name, site in latent_sites(trace).items()} for trace in traces]
    stacked = {name: torch.stack([values[name] for values in latent]) for name in latent[0]}
    fixed = {"order": stacked["order"].unsqueeze(1)} if "order" in stacked else {}
    with isolated(0, dtype=torch.double):
        density = LogDensity(model, inputs, fixed)
        got = density(density.pack({name: stacked[name] for name in density.shapes}), jacobian=False)
    torch.testing.assert_close(got, torch.stack([trace.log_prob_sum() for trace in traces]))
    if not model.has_logits:
        networks, _ = model.networks_of(inputs["covariates"], stacked)
        wanted = torch.stack([trace.nodes["expression"]["fn"].networks() for trace in traces])
        torch.testing.assert_close(networks, wanted)
    settings = model.settings()
    assert (settings is None) == (choice["edge_prior"] == "learned horseshoe")
    if settings is not None:
        other = NOTMAD.from_settings(settings).double()
        other.load_state_dict(model.state_dict())
        if samples:
            other.acyclicity.num_rows = 12
        torch.testing.assert_close(draw(other, inputs, 0).log_prob_sum(), traces[0].log_prob_sum())


@pytest.mark.parametrize("choice", [c for c in PAIRS if OPTIONS["order"][c["order"]] is not None], ids=label)
def test_simulation(choice: Choice) -> None:
    """Cells drawn from the prior are of the declared kind, and their networks acyclic where that is promised."""
    data = cells(choice["likelihood"], 12)
    model = model_of(choice, data)
    trace = draw(model, {"covariates": inputs_of(data)["covariates"]}, 1)
    expression, sem = trace.nodes["expression"]["value"], trace.nodes["expression"]["fn"]
    assert expression.shape == (12, 4)
    assert bool(torch.isfinite(expression).all())
    if model.archetypes.acyclic:
        assert bool(is_acyclic(sem.networks()).all())
        if model.likelihood.has_scale:
            torch.testing.assert_close(sem.log_abs_det(), torch.zeros(12, dtype=torch.double))
    if not model.likelihood.has_scale:
        assert set(expression.unique().tolist()) <= {0.0, 1.0}


def test_what_is_not_allowed_is_refused() -> None:
    plain = {key: next(iter(names)) for key, names in OPTIONS.items()}
    refused = 0
    for a, b in itertools.combinations(OPTIONS, 2):
        for x, y in itertools.product(OPTIONS[a], OPTIONS[b]):
            choice = {**plain, a: x, b: y}
            if allowed(choice):
                continue
            refused += 1
            with pytest.raises(eg.DataError, match="found|wanted"):
                model_of(choice, cells(choice["likelihood"], 12))
    assert refused > 20


@pytest.mark.parametrize("choice", list(each_once()), ids=label)
def test_fit(choice: Choice, tmp_path: Path) -> None:
    """Fits, draws, exports, saves, loads, predicts."""
    data = cells(choice["likelihood"])
    train, test = eg.split(data)
    model = model_of(choice, train)
    if choice["order"] == "projected" and choice["mixture_scale"] != "none":
        with pytest.raises(eg.DataError, match="mixture_scale"):
            eg.fit(model, train, **SMALL)
        return
    fit = eg.fit(model, train, seed=1, **SMALL)
    networks = fit.networks(test[["covariates"]], num_samples=20)
    for name in ("network", "lower", "upper", "edge_probability", "intercept"):
        assert np.isfinite(networks[name].values).all(), name
    assert bool(is_acyclic(torch.as_tensor(networks["network"].values)).all()), "projected means"
    if model.form != "relaxed" and model.archetypes.acyclic:
        assert networks.attrs["share_acyclic"] == 1.0
    assert np.isfinite(fit.log_density(test, num_samples=20).values).all()
    tree = fit.posterior(test, 10)
    assert list(tree["posterior"]["archetypes"].coords["regulator"].values) == list(data["gene"].values)
    eg.to_arviz(tree)
    if model.form != "relaxed":
        assert np.isfinite(fit.predict(test[["covariates"]], 5)["expression"].values).all()
    fit.save(tmp_path / "fit")
    again = eg.load(tmp_path / "fit", model=None if model.settings() is not None else model)
    xr.testing.assert_equal(again.networks(test[["covariates"]], num_samples=20), networks)
