"""Peripheral blood mononuclear cells: 700 cells and 765 genes, counted (Zheng et al. 2017)."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import xarray as xr


def pbmc() -> xr.Dataset:
    """Load counts of 700 human blood cells of ten kinds (Zheng et al., Nature Communications 2017).

    A subset of the "Fresh 68k PBMC" of 10x Genomics that scanpy distributes. Genes were chosen there for their
    variability, so the totals over all genes come as a variable. The labels are those of the most similar population of
    cells sorted by surface markers.

    Returns
    -------
    xr.Dataset
        ``expression (cell, gene)``
            Unique transcripts, int64; two thirds are zeros. No cell or gene is empty.
        ``label (cell)``
            Kind of cell, ten of them with 8 to 240 cells.
        ``total_counts (cell)``
            Transcripts of the cell over all genes measured, not just those given.
        ``phase (cell)``
            Phase of the cell cycle by marker genes: ``G1``, ``S`` or ``G2M``.
        ``mitochondrial_fraction (cell)``
            Share of the total that comes from mitochondrial genes.

    Examples
    --------
    >>> from embergraph.datasets import pbmc
    >>> data = pbmc()
    >>> dict(data["expression"].sizes)
    {'cell': 700, 'gene': 765}
    """
    with files(__package__).joinpath("files", "pbmc_counts.npz").open("rb") as file:
        stored = dict(np.load(file, allow_pickle=False))
    return xr.Dataset(
        {
            "expression": (("cell", "gene"), stored["counts"].astype(np.int64), {"units": "transcripts"}),
            "label": ("cell", stored["labels"][stored["label_code"]]),
            "total_counts": ("cell", stored["total_counts"].astype(np.int64), {"units": "transcripts"}),
            "phase": ("cell", stored["phases"][stored["phase_code"]]),
            "mitochondrial_fraction": ("cell", stored["percent_mito"].astype(np.float64)),
        },
        coords={"cell": stored["cells"], "gene": stored["genes"]},
        attrs={
            "title": "Human peripheral blood mononuclear cells, 700 of 68 thousand",
            "reference": "Zheng et al., Nature Communications 8 (2017) 14049, doi 10.1038/ncomms14049",
        },
    )
