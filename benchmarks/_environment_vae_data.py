"""Two real perturbation screens from a folder that the user gives, and their splits.

Files: ``tapseq_chr8_tap1.csv.gz`` (CRISPRi TAP-seq in K562, Schraivogel et al. 2020, GSE135497; columns cell, target,
guide, then genes), ``l1000_a375_24h.csv.gz`` (L1000 plate LJP005, log2 intensities; columns well_id, well, pert_id,
pert_iname, pert_type, dose_um, cell, time_h, then genes) and ``l1000_a375_compounds.csv`` (pert_id, pert_iname, smiles,
on-bits of the Morgan fingerprint).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

import embergraph as eg

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float

CONTROL = "control"
TAP_SEQ = "tapseq_chr8_tap1.csv.gz"
L1000 = ("l1000_a375_24h.csv.gz", "l1000_a375_compounds.csv")
SOURCE = "Public screens; benchmarks/README.md says which, and what the files hold."
EXPRESSED = 0.1  # mean counts per cell
NUM_BITS = 1024
EXTRA_COUNTS = 0.5


def tap_seq(folder: Path) -> xr.Dataset:
    """Counts of 72 genes in 9650 cells with one guide: 14 targets and ``control``.

    Returns
    -------
    xr.Dataset
        ``expression (cell, gene)`` counts, ``environment (cell)`` targets, ``library (cell)`` total counts, ``guide
        (cell)``.
    """
    import pandas as pd

    table = pd.read_csv(folder / TAP_SEQ)
    genes = list(table.columns[3:])
    counts = table[genes].to_numpy(dtype=np.float64)
    data = eg.from_arrays(
        counts,
        environment=table["target"].to_numpy(dtype=str),
        cell_names=table["cell"].to_numpy(dtype=str),
        gene_names=genes,
    )
    guides = table["guide"].to_numpy(dtype=str)
    return data.assign(library=("cell", counts.sum(axis=1)), guide=("cell", guides))


def halves(data: xr.Dataset, seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Random half of the cells of each environment for training, the rest for testing.

    Drawn anew until every gene has counts in both.
    """
    random = np.random.default_rng(seed)
    codes = data["environment"].to_numpy()
    while True:
        train = np.zeros(len(codes), dtype=bool)
        for code in range(data.sizes["condition"]):
            members = random.permutation(np.flatnonzero(codes == code))
            train[members[: len(members) // 2]] = True
        parts = tuple(data.isel(cell=np.flatnonzero(mask)) for mask in (train, ~train))
        if all((part["expression"].sum("cell") > 0).all() for part in parts):
            return parts


def expressed(train: xr.Dataset) -> Bool[np.ndarray, " gene"]:
    """Genes with more than a tenth of a count per training cell: of others no fold change can be measured."""
    return (train["expression"].mean("cell") > EXPRESSED).to_numpy()


def empirical_effects(data: xr.Dataset, control: str = CONTROL) -> xr.DataArray:
    """Log2 fold change of counts over library sizes to the control (condition, gene), half a count added to totals."""
    codes, size = data["environment"].to_numpy(), data.sizes["condition"]
    totals, library = np.zeros((size, data.sizes["gene"])), np.bincount(codes, data["library"], size)
    np.add.at(totals, codes, data["expression"].to_numpy())
    rates = xr.DataArray(
        np.log2((totals + EXTRA_COUNTS) / library[:, None]),
        {"condition": data["condition"].to_numpy(), "gene": data["gene"].to_numpy()},
        ("condition", "gene"),
    )
    return rates - rates.sel(condition=control, drop=True)


def effect_scores(effects: xr.DataArray, train: xr.Dataset, test: xr.Dataset) -> dict[str, float]:
    """Correlation and root mean squared error of log2 fold changes against the empirical ones of the test cells.

    Over expressed genes; the correlation is averaged over targets and left out where the effects are constant, the
    error is that of all entries.
    """
    genes = expressed(train)
    truth = empirical_effects(test).drop_sel(condition=CONTROL).to_numpy()[:, genes]
    found = effects.drop_sel(condition=CONTROL).to_numpy()[:, genes]
    scores = {"effect rmse": float(np.sqrt(np.mean((found - truth) ** 2)))}
    if (found.std(axis=1) > 0).all():
        scores["effect r"] = float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found, truth, strict=True)]))
    return scores


def l1000(folder: Path) -> xr.Dataset:
    """Wells of a plate: compounds with a known fingerprint at six doses, and DMSO.

    Returns
    -------
    xr.Dataset
        ``expression (cell, gene)``, log2 intensity minus the mean of the DMSO wells; ``environment (cell)``,
        ``control`` or ``compound @ dose``; ``compound (cell)``; ``log_dose (cell)``, log10 of uM rounded to 0.1, NaN
        for DMSO; ``descriptors (condition, feature)``: fingerprint at unit norm and standardised log10 dose, zeros for
        DMSO.
    """
    import pandas as pd

    table, compounds = (pd.read_csv(folder / name) for name in L1000)
    compounds = compounds.set_index("pert_id")
    genes = list(table.columns[8:])
    dmso = (table["pert_type"] == "ctl_vehicle").to_numpy()
    treated = (table["pert_type"] == "trt_cp").to_numpy() & table["pert_id"].isin(compounds.index).to_numpy()
    values = table[genes].to_numpy(dtype=np.float64) - table.loc[dmso, genes].to_numpy().mean(axis=0)
    rows = np.flatnonzero(dmso | treated)
    wells = table.iloc[rows]
    log_dose = np.where(dmso[rows], np.nan, np.log10(wells["dose_um"].clip(lower=1e-9)).round(1))
    names = [
        CONTROL if is_control else f"{name} @ {dose:.2g} uM"
        for name, dose, is_control in zip(wells["pert_iname"], wells["dose_um"], dmso[rows], strict=True)
    ]
    data = eg.from_arrays(
        values[rows],
        environment=np.array(names),
        cell_names=wells["well_id"].to_numpy(dtype=str),
        gene_names=genes,
    )
    bits = np.stack([_bits(compounds, pert_id) for pert_id in wells["pert_id"]])
    dose = np.nan_to_num((log_dose - np.nanmean(log_dose)) / np.nanstd(log_dose))
    first = np.unique(data["environment"].to_numpy(), return_index=True)[1]
    features = [f"bit{i}" for i in range(NUM_BITS)] + ["log_dose"]
    return data.assign(
        compound=("cell", wells["pert_id"].to_numpy(dtype=str)),
        log_dose=("cell", log_dose),
        descriptors=(("condition", "feature"), np.column_stack([bits, dose])[first]),
    ).assign_coords(feature=features)


def held_out_compounds(data: xr.Dataset, seed: int, number: int = 10) -> tuple[xr.Dataset, xr.Dataset]:
    """Hold out all doses of some compounds; genes divided by their sd over the treated training wells.

    Training wells include the DMSO wells, for models that have use for them; `treated` leaves them out.
    """
    compounds = np.unique(treated(data)["compound"].to_numpy())
    held = np.random.default_rng(seed).permutation(compounds)[:number]
    test = np.isin(data["compound"].to_numpy(), held)
    train, test = (data.isel(cell=np.flatnonzero(mask)) for mask in (~test, test))
    scale = treated(train)["expression"].std("cell")
    return train.assign(expression=train["expression"] / scale), test.assign(expression=test["expression"] / scale)


def treated(data: xr.Dataset) -> xr.Dataset:
    """Wells with a compound."""
    return data.isel(cell=np.flatnonzero(np.isfinite(data["log_dose"].to_numpy())))


def _bits(compounds: pd.DataFrame, pert_id: str) -> Float[np.ndarray, " bit"]:
    """Fingerprint of unit norm; zeros for what has none."""
    bits = np.zeros(NUM_BITS)
    if pert_id in compounds.index:
        bits[[int(bit) for bit in compounds.loc[pert_id, "morgan2_1024_on_bits"].split()]] = 1
    return bits / max(np.linalg.norm(bits), 1)
