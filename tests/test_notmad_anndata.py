"""Results in AnnData: right places and names, nothing overwritten, also for an object of the real class on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from notmad_use_cases import GENES, about_cells, from_prior

import embergraph as eg

VARIABLES = ["Src", *GENES[::-1], "Abl"]  # more genes than the fit's, in another order


@pytest.fixture(scope="module")
def fit() -> eg.NOTMADFit:
    return from_prior()


def stand_in(num_cells: int = 6) -> Any:
    obs = about_cells(num_cells, 3).assign(batch="one")
    return SimpleNamespace(
        obs=obs, obsm={}, varp={}, uns={}, obs_names=obs.index, var_names=pd.Index(VARIABLES), X=None, layers={}
    )


def test_everything_is_where_it_should_be(fit: eg.NOTMADFit) -> None:
    adata = stand_in()
    fit.to_anndata(adata, scale="original")
    frame = adata.obs[["time", "stress"]]
    values = fit.global_draws(None)
    Z = fit.model.mixture_of(torch.as_tensor(fit.encode(frame)["covariates"].values), values).numpy()
    np.testing.assert_allclose(adata.obsm["notmad_mixture"], Z.mean(0))
    np.testing.assert_allclose(adata.obs["notmad_entropy"], -(Z * np.log(Z)).sum(-1).mean(0))
    assert adata.obs["notmad_archetype"].tolist() == [str(k) for k in Z.mean(0).argmax(-1)]
    mean = fit.contrast(frame, frame, scale="original")["first"]
    network = pd.DataFrame(adata.varp["notmad_network"].toarray(), index=VARIABLES, columns=VARIABLES)
    np.testing.assert_allclose(network.loc[GENES, GENES], mean)
    assert (network.loc[["Src", "Abl"]] == 0).all(axis=None)
    assert (network[["Src", "Abl"]] == 0).all(axis=None)
    probability = adata.varp["notmad_edge_probability"].toarray()
    assert 0 < probability.max() <= 1
    about = adata.uns["notmad"]
    assert about["archetypes"].shape == (3, 4, 4)
    assert about["genes"].tolist() == GENES
    assert json.loads(about["settings"])["routine"] == "prior"
    assert about["versions"]["embergraph"]


def test_covariates_are_matched_by_name(fit: eg.NOTMADFit) -> None:
    plain, shuffled = stand_in(), stand_in()
    fit.to_anndata(plain)
    fit.to_anndata(shuffled, fit.encode(shuffled.obs.iloc[::-1]))
    np.testing.assert_array_equal(plain.obsm["notmad_mixture"], shuffled.obsm["notmad_mixture"])
    array = stand_in()
    fit.to_anndata(array, fit.encode(array.obs)["covariates"].values)
    np.testing.assert_array_equal(plain.obsm["notmad_mixture"], array.obsm["notmad_mixture"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.obsm.update(notmad_mixture=1), "obsm\\['notmad_mixture'\\]"),
        (lambda a: a.uns.update(notmad=1), "uns\\['notmad'\\]"),
        (lambda a: setattr(a, "var_names", pd.Index(VARIABLES[:3])), "'Raf', 'Mek' too"),
        (lambda a: setattr(a, "var_names", pd.Index([*VARIABLES, "Abl"])), "more than once"),
        (lambda a: setattr(a, "obs", a.obs.drop(columns="time")), "'time'"),
    ],
)
def test_refusals_leave_everything_as_it_was(fit: eg.NOTMADFit, change: Any, words: str) -> None:
    adata = stand_in()
    change(adata)
    before = (set(adata.obs), set(adata.obsm), set(adata.varp), dict(adata.uns))
    with pytest.raises(eg.DataError, match=words):
        fit.to_anndata(adata)
    assert (set(adata.obs), set(adata.obsm), set(adata.varp), dict(adata.uns)) == before


def test_other_keys_and_overwriting(fit: eg.NOTMADFit) -> None:
    adata = stand_in()
    fit.to_anndata(adata)
    fit.to_anndata(adata, key="second")
    assert {"notmad_mixture", "second_mixture"} == set(adata.obsm)
    fit.to_anndata(adata, overwrite=True)
    with pytest.raises(eg.DataError, match="found none for cells 'cell5'"):
        fit.to_anndata(adata, fit.encode(adata.obs.iloc[:5]), key="third")


@pytest.mark.filterwarnings("ignore")  # anndata's own
def test_the_real_class_keeps_it_on_disk(fit: eg.NOTMADFit, tmp_path: Path) -> None:
    try:
        anndata = pytest.importorskip("anndata")
    except Exception as error:  # an installed anndata that does not go with the installed pandas
        pytest.skip(str(error))
    plain = stand_in()
    adata = anndata.AnnData(X=np.zeros((6, 6)), obs=plain.obs.copy(), var=pd.DataFrame(index=VARIABLES))
    fit.to_anndata(adata)
    fit.to_anndata(plain)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(again.obsm["notmad_mixture"], plain.obsm["notmad_mixture"])
    assert again.obs["notmad_archetype"].tolist() == plain.obs["notmad_archetype"].tolist()
    np.testing.assert_array_equal(again.varp["notmad_network"].toarray(), plain.varp["notmad_network"].toarray())
    np.testing.assert_array_equal(again.uns["notmad"]["archetypes"], plain.uns["notmad"]["archetypes"])
    assert list(again.uns["notmad"]["genes"]) == GENES
