"""Small data and guides of environments that several tests look at."""

import torch

from embergraph.datasets import simulated_environments, simulated_perturbations
from embergraph.guides.environment_vae import EnvironmentVAEGuide
from embergraph.guides.parts.cell_encoders import CellEncoder
from embergraph.inference.inputs import to_inputs
from embergraph.models import EnvironmentVAE

OFFSETS = [{}, {0: 3.0}, {1: 3.0}]


def two_latents(seed=0, num_cells=200, **options):
    return simulated_environments(seed, num_latents=2, num_genes=10, offsets=OFFSETS, num_cells=num_cells, **options)


def counts(seed=0, num_perturbations=6, num_cells=20, **options):
    return simulated_perturbations(
        seed, num_perturbations=num_perturbations, num_cells=num_cells, num_latents=3, num_genes=12, **options
    )


def guide_of(model, data, sees="x", num_features=0, transform=None, **options):
    transform = transform or ("log1p_library" if model.likelihood.counts else "identity")
    encoder = CellEncoder(
        model.num_genes, model.num_latents, (8,), transform=transform, sees=sees, num_features=num_features
    )
    library = torch.as_tensor(data["library"].values) if model.likelihood.counts else None
    encoder.double().fit_transform_(torch.as_tensor(data["expression"].values), library)
    return EnvironmentVAEGuide.for_model(model, encoder, **options)


def pair(data, num_latents=3, sees="x", num_features=0, guide_options=None, model=None, **options):
    """Model, guide and inputs in double precision, with a posterior of environments from one update."""
    model = model or EnvironmentVAE.for_data(data, num_latents, **options)
    guide = guide_of(model, data, sees, num_features, **(guide_options or {}))
    model, guide = model.double(), guide.double()
    return model, guide, to_inputs(model.schema, data)
