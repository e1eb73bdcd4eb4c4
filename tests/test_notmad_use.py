"""What users ask of a fitted NOTMAD: every answer against brute force on draws of the prior, under every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from notmad_use_cases import FORMS, GENES, about_cells, cells, close, data, draws_of, from_prior

import embergraph as eg
from embergraph import models
from embergraph.inference import StoredDraws


@pytest.fixture(scope="module", params=list(FORMS))
def fit(request: pytest.FixtureRequest) -> eg.NOTMADFit:
    return from_prior(**FORMS[request.param])


@pytest.fixture(scope="module")
def exact() -> eg.NOTMADFit:
    return from_prior()


def mixture_of_medians(fit: eg.NOTMADFit, frame: Any) -> np.ndarray:
    """What a projected fit reports before projection."""
    values = {name: value.median(0, keepdim=True).values for name, value in fit.global_draws(None).items()}
    C = torch.as_tensor(fit.encode(frame)["covariates"].values)
    Z, W = fit.model.mixture_of(C, values)[0], fit.model.archetypes_of(values)[0]
    return torch.einsum("nk,kab->nab", Z, W).numpy()


@pytest.mark.parametrize("part", [1, 300, 10**7])
def test_networks_by_parts_are_those_of_all_draws(
    fit: eg.NOTMADFit, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHUNK_ELEMENTS", "ARCHETYPE_ELEMENTS"):
        monkeypatch.setattr(f"embergraph.methods._notmad_stream.{name}", part)
    frame = about_cells(7, 3)
    frame.iloc[4] = frame.iloc[1]
    _, W, b = draws_of(fit, frame)
    found = fit.networks(frame, quantiles=[0.0, 0.3, 0.5], project_mean=False, draws=True)
    centre = mixture_of_medians(fit, frame) if fit.model.form == "projected" else W.mean(0)
    close(found["network"], centre)
    close(found["lower"], np.quantile(W, 0.05, axis=0, method="weibull"))
    close(found["upper"], np.quantile(W, 0.95, axis=0, method="weibull"))
    close(found["quantiles"], np.quantile(W, [0.0, 0.3, 0.5], axis=0, method="weibull"))
    close(found["edge_probability"], (np.abs(W) > 0.05).mean(0))
    close(found["draws"], W)
    if fit.model.form != "projected":
        close(found["intercept"], b.mean(0))
    assert found.attrs["share_acyclic"] == found.attrs["acyclic"] == 1
    projected = fit.networks(frame, interval=None, edge_threshold=None)
    close(projected["network"], eg.project(torch.as_tensor(centre)).networks)
    assert set(projected.data_vars) == {"network", "intercept", "sigma", "removed_mass"}
    change = fit.contrast(frame.iloc[:3], frame.iloc[3:])
    gap = W[:, :3].mean(1) - W[:, 3:].mean(1)
    close(change["difference"], gap.mean(0))
    close(change["lower"], np.quantile(gap, 0.05, axis=0, method="weibull"))
    close(change["change_probability"], (np.abs(gap) > 0.05).mean(0))


def test_interval_and_options_are_checked(exact: eg.NOTMADFit) -> None:
    frame = about_cells(3, 0)
    for wrong, words in (
        ({"interval": 90}, "interval"), ({"quantiles": [1.5]}, "quantiles"), ({"scale": "log"}, "scale"),
    ):  # fmt: skip
        with pytest.raises(eg.DataError, match=words):
            exact.networks(frame, **wrong)


def test_cells_with_logits_of_their_own_are_all_different() -> None:
    fit = from_prior(mixture_scale=0.5)
    frame = about_cells(1, 0).loc[["cell0"] * 200].set_index(np.arange(200).astype(str))
    found = fit.networks(frame, draws=True, num_samples=12)
    assert float(found["draws"].std("cell").max()) > 0.05
    close(found["network"], fit.networks(frame)["network"])
    alone = fit.contrast(frame.iloc[:1], frame.iloc[1:])
    many = fit.contrast(frame.iloc[:100], frame.iloc[100:])
    assert float((many["upper"] - many["lower"]).max()) < 0.5 * float((alone["upper"] - alone["lower"]).max())


def test_factor_networks_say_that_they_are_no_dags() -> None:
    fit = from_prior(archetypes=models.FactorNetworks(2))
    frame = about_cells(3, 0)
    assert fit.networks(frame).attrs["acyclic"] == 0
    with pytest.raises(eg.DataError, match="total_effects: found factors archetypes"):
        fit.total_effects(frame)
    with pytest.raises(eg.DataError, match="do: found factors archetypes"):
        fit.do({"Raf": 1.0}, frame)


# Covariates


@pytest.mark.parametrize("encoder", ["gp", "nam", "linear"])
def test_curves_of_covariates_add_up_to_the_logits(encoder: str) -> None:
    fit = from_prior(encoder=encoder)
    effects = fit.covariate_effects(9)
    frame, rng = about_cells(6, 5), np.random.default_rng(0)
    grid = effects["value"].values[effects["of"].values == "time"]
    place = rng.integers(9, size=6)
    frame["time"] = grid[place]
    total = np.tile(effects["bias"].values, (6, 1))
    for i, (where, level) in enumerate(zip(place, frame["stress"], strict=True)):
        total[i] += effects["logit"].values[where]
        total[i] += effects["logit"].values[(effects["level"] == level).values][0]
    values = fit.global_draws(None)
    eta = fit.model.encoder(torch.as_tensor(fit.encode(frame)["covariates"].values), values).numpy()
    close(total, (eta - eta.mean(-1, keepdims=True)).mean(0))
    for covariate in ("time", "stress"):
        close(effects["logit"].values[effects["of"].values == covariate].mean(0), 0.0)
    assert effects.attrs["additive"] == 1
    assert effects.attrs["interaction_share"] == 0.0
    anywhere = fit.covariate_effects(9, at=frame)
    close(anywhere["logit"], effects["logit"])
    close(anywhere["bias"], effects["bias"])


def test_grid_is_the_training_range() -> None:
    train = data(60, scale="gene")
    time = train["covariates"].sel(covariate="time")
    effects = from_prior(train).covariate_effects(5, ["time"])
    close(effects["value"], np.linspace(float(time.min()), float(time.max()), 5))
    assert "stress" not in effects["of"].values
    levels = from_prior(train).covariate_effects(5, ["stress"])["level"].values
    assert levels.tolist() == ["heat", "none", "salt"]


@pytest.mark.parametrize("form", list(FORMS))
def test_curves_of_mixture_and_edges_are_averages_over_cells(form: str) -> None:
    fit = from_prior(**FORMS[form])
    frame = about_cells(5, 2)
    effects = fit.covariate_effects(4, at=frame, edges=[("Mek", "Raf"), ("Raf", "Akt")])
    for i in range(effects.sizes["point"]):
        moved, point = frame.copy(), effects.isel(point=i)
        moved[str(point["of"].values)] = str(point["level"].values) or float(point["value"])
        Z, W, _ = draws_of(fit, moved)
        close(point["mixture"], Z.mean((0, 1)))
        close(point["effect"], W.mean((0, 1))[[1, 0], [0, 3]])
        close(point["effect_upper"], np.quantile(W.mean(1)[:, [1, 0], [0, 3]], 0.95, axis=0, method="weibull"))
    original = fit.covariate_effects(4, at=frame, edges=[("Mek", "Raf")], scale="original")
    ratio = fit.standardizer.scale[0] / fit.standardizer.scale[1]
    close(original["effect"][:, 0], effects["effect"][:, 0] * ratio)


def test_interactions_are_measured() -> None:
    joint = from_prior(encoder="gp_joint").covariate_effects(3)
    assert joint.attrs["additive"] == 0
    assert 0.02 < joint.attrs["interaction_share"] < 0.9
    fit = from_prior(encoder="gp_joint")
    names = fit.model.encoder.feature_names
    smooth = [i for i, (j, _) in enumerate(names) if j < 0]
    fit.stored.values["encoder_weights"][..., smooth, :] = 0.0  # nothing but the additive part is left
    assert fit.covariate_effects(3).attrs["interaction_share"] < 1e-6


def test_covariate_effects_refuse_what_is_not_there(exact: eg.NOTMADFit) -> None:
    for wrong, words in (
        ({"covariates": ["age"]}, "found 'age'"), ({"num_points": 1}, "num_points"),
        ({"edges": [("Raf", "Src")]}, "found genes 'Src'"),
    ):  # fmt: skip
        with pytest.raises(eg.DataError, match=words):
            exact.covariate_effects(**wrong)


# The map


def test_map_of_networks_is_their_projection(fit: eg.NOTMADFit) -> None:
    frame = about_cells(8, 4)
    found = fit.archetype_map(frame)
    _, W, _ = draws_of(fit, frame)
    corners = fit.model.archetypes_of(fit.global_draws(None)).mean(0).numpy()
    distance = np.linalg.norm((corners[:, None] - corners[None]).reshape(3, 3, -1), axis=-1)
    flat = found["archetype_position"].values
    close(np.linalg.norm(flat[:, None] - flat[None], axis=-1), distance)  # three archetypes lie in one plane
    close(found["shown"].sum(), 1.0)
    # The plane is spanned by the archetypes, so the place of a network is its least-squares mixture of them.
    basis = (corners - corners.mean(0)).reshape(3, -1)
    weights = np.linalg.lstsq(basis.T, (W - corners.mean(0)).reshape(-1, 16).T, rcond=None)[0]
    places = (weights.T @ flat).reshape(*W.shape[:2], 2)
    close(found["position"], places.mean(0))
    close(found["covariance"][0], np.cov(places[:, 0].T, ddof=0))
    again = fit.archetype_map(frame.iloc[:3])
    close(again["position"], found["position"][:3])


def test_map_on_a_polygon_is_the_mixture(exact: eg.NOTMADFit) -> None:
    frame = about_cells(8, 4)
    found = exact.archetype_map(frame, layout="polygon")
    Z, _, _ = draws_of(exact, frame)
    close(np.linalg.norm(found["archetype_position"], axis=1), 1.0)
    close(found["position"], Z.mean(0) @ found["archetype_position"].values)
    assert found["leading"].values.tolist() == Z.mean(0).argmax(-1).tolist()
    assert exact.archetype_map(frame)["leading"].values.tolist() == found["leading"].values.tolist()
    with pytest.raises(eg.DataError, match="layout"):
        exact.archetype_map(frame, layout="tsne")


@pytest.mark.parametrize("num_archetypes", [1, 2, 5])
def test_map_of_few_and_many_archetypes(num_archetypes: int) -> None:
    fit = from_prior(num_archetypes=num_archetypes)
    found = fit.archetype_map(about_cells(4, 0))
    assert np.isfinite(found["position"]).all()
    assert (np.abs(found["position"]).values[:, num_archetypes - 1 :] < 1e-12).all()
    polygon = fit.archetype_map(about_cells(4, 0), layout="polygon")
    assert polygon["archetype_position"].shape == (num_archetypes, 2)


# Covariates as users have them


def test_text_is_encoded_in_the_columns_of_the_fit(exact: eg.NOTMADFit) -> None:
    train = data(60, scale="gene")
    frame = about_cells(5, 1)
    frame["stress"] = "salt"  # of three levels one
    encoded = exact.encode(frame.assign(note="x"))
    assert encoded["covariate"].values.tolist() == train["covariate"].values.tolist()
    assert (encoded["covariates"].sel(covariate="stress[salt]") == 1).all()
    assert float(encoded["covariates"].sel(covariate="stress[heat]").sum()) == 0
    close(exact.networks(frame)["network"], exact.networks(encoded)["network"])
    for wrong, words in (
        (frame.drop(columns="time"), "'time'"), (frame.assign(stress="cold"), "levels 'cold'"),
        (frame.assign(time="late"), "wanted numbers"), (frame.assign(stress=None), "missing"),
    ):  # fmt: skip
        with pytest.raises(eg.DataError, match=words):
            exact.networks(wrong)


def test_data_like_other_data() -> None:
    expression, about = cells(20, 2)
    train = eg.from_dataframes(*cells(20, 0), environment=["a", "b"] * 10)
    about["stress"] = "none"
    new = eg.from_dataframes(
        expression[GENES[::-1]].assign(Src=1.0), about, environment=["b"] * 20, like=train, min_cells=1
    )
    assert new["gene"].values.tolist() == GENES
    close(new["expression"], expression)
    assert new["covariate"].values.tolist() == train["covariate"].values.tolist()
    assert (new["environment"] == 1).all()
    assert new["condition"].values.tolist() == ["a", "b"]
    xr.testing.assert_identical(eg.from_dataframes(*cells(20, 0), environment=["a", "b"] * 10, like=train), train)
    with pytest.raises(eg.DataError, match="genes not in columns of expression: 'Akt'"):
        eg.from_dataframes(expression.drop(columns="Akt"), about, like=train)
    with pytest.raises(eg.DataError, match="environment has levels 'c'"):
        eg.from_dataframes(expression, about, environment=["c"] * 20, like=train)


def test_labels_of_archetypes_are_matched_between_chains() -> None:
    fit = from_prior(order="projected", num_draws=1)
    one = {name: value.clone() for name, value in fit.stored.values.items()}
    numbers = torch.tensor([2, 0, 1])
    noise = torch.Generator().manual_seed(0)
    values = {}
    for name, value in one.items():
        first = value + 0.01 * torch.randn(1, 8, *value.shape[2:], generator=noise, dtype=torch.double)
        dims = fit.model.schema.site_dims[name]
        axis = dims.index("archetype") - len(dims) if "archetype" in dims else None
        second = first if axis is None else first.index_select(axis, numbers)
        values[name] = torch.cat([first, second])
    both = eg.NOTMADFit(fit.model, None, fit.schema, fit.template, draws=StoredDraws(values, {"lp": np.zeros((2, 8))}))
    first = {name: value[:1] for name, value in values.items()}
    alone = eg.NOTMADFit(fit.model, None, fit.schema, fit.template, draws=StoredDraws(first, {"lp": np.zeros((1, 8))}))
    frame = about_cells(4, 1)
    close(both.mixture(frame)["mixture"], alone.mixture(frame)["mixture"])
    close(both.covariate_effects(3)["logit"], alone.covariate_effects(3)["logit"])
    close(both.archetype_map(frame)["archetype_position"], alone.archetype_map(frame)["archetype_position"])
    close(both.networks(frame)["edge_probability"], alone.networks(frame)["edge_probability"])
