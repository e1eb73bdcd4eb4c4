"""Stage 1 of NOTMAD's plan for models given orders: order and encoder in turns, everything else integrated out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..guides.evidence import log_evidence, mean_edges
from ..guides.orders import OrderScore, climb
from ..guides.sparse_orders import SparseOrderScore
from ..inference.density import LogDensity
from ..inference.maximum import Maximum
from ..inference.quasi_newton import ascend
from ..models.notmad import NOTMAD
from ..models.parts.mixing import MIXING

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MAX_FEATURES = 2000  # archetypes x genes, whose Gram matrix is factorised in every step
FEW_FEATURES = 320  # the same, of the genes that the encoder is searched on where there are more
MAX_CELLS = 2048  # to search on; later stages take all
MAX_SWEEPS = 3  # over the order of many genes
FIRST_STEPS, LATER_STEPS, NUM_TURNS = 12, 60, 6
MANY_FEATURES = 80  # archetypes x genes above which starts agree so well that one is finished, not two
TOLERANCE = 1e-6
SPREAD = 0.45  # of the encoder's weights at a start


def collapses(model: NOTMAD) -> bool:
    """Whether edges can be integrated out, by Gaussian equations as a stand-in where the likelihood is another."""
    return model.form == "exact" and model.archetypes.kind == "dense"


def has_many_genes(model: NOTMAD) -> bool:
    """Whether orders are scored with a few candidate regulators of every gene, and one order is kept."""
    return model.num_archetypes * model.num_genes > MAX_FEATURES


def search_order(
    model: NOTMAD, relaxed: NOTMAD, inputs: Mapping[str, Tensor], *, num_restarts: int, progress: bool,
    once: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]] = lambda _, stage: stage(),
) -> tuple[LogDensity, Maximum]:  # fmt: skip
    """Order and encoder of the highest evidence, edges, intercepts and noise integrated out.

    From each start the order climbs given the mixture and then the encoder given the order; the best two starts (the
    best one of more than 80 archetypes x genes) go on in turns until the order stays. Without the edges starts agree
    where those of a joint search do not. With more than 2000 archetypes x genes this is done for the genes that vary
    most, and all genes are put in order once, given the encoder, each with a few candidate regulators.

    Parameters
    ----------
    model
        Exact, see `collapses`.
    relaxed
        The relaxed counterpart of `model`, in whose terms the point is told.
    inputs
        The data.
    num_restarts
        Starts.
    progress
        Whether to show a bar.
    once
        Gives what a stage of some name comes to, see `Stages`: each start and each that goes on is one.

    Returns
    -------
    tuple
        The density of `relaxed`, and for every start the best point found (mean edges given order and encoder, so its
        topological order is the order) with the log evidence, encoder's prior included, of the start itself. After
        Ctrl-C the best so far.
    """
    search, states, interrupted = _Search(model, inputs), [], False
    num_finalists = 2 if model.num_archetypes * model.num_genes <= MANY_FEATURES else 1
    bar = tqdm(total=num_restarts + num_finalists, desc=f"orders, {num_restarts} starts", disable=not progress)
    try:
        for number in range(num_restarts):
            found = once(f"start {number}", lambda: search.turn(search.start(), FIRST_STEPS).tensors())
            states.append(_State.of(found))
            bar.update()
        for place in np.argsort([-state.score for state in states], kind="stable")[:num_finalists]:
            found = once(f"finish {place}", lambda: search.finish(states[place]).tensors())  # noqa: B023
            states[place] = _State.of(found)
            bar.update()
    except KeyboardInterrupt:
        interrupted = True
        if not states:
            raise
    finally:
        bar.close()
    scores = relaxed.encoder.location.new_tensor([state.score for state in states])
    zero = relaxed.encoder.location.new_zeros(())
    density = LogDensity(relaxed, inputs, {"encoder_log_amplitude": zero})
    best = states[int(scores.argmax())]
    known = {
        **density.example,
        **(search.sparse_values(best, progress) if has_many_genes(model) else search.values(best)),
    }
    point = density.pack({name: known[name].to(zero).unsqueeze(0) for name in density.shapes})
    return density, Maximum(point.expand(len(scores), -1), scores, scores.unsqueeze(0), interrupted)


@dataclass(frozen=True)
class _State:
    order: Int[np.ndarray, " gene"]
    vector: Float[Tensor, "1 dim"]
    score: float

    def tensors(self) -> dict[str, Tensor]:
        score = torch.tensor(self.score, dtype=torch.double)
        return {"order": torch.tensor(self.order), "vector": self.vector, "score": score}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> _State:
        return cls(tensors["order"].cpu().numpy(), tensors["vector"], float(tensors["score"]))


class _Search:
    def __init__(self, model: NOTMAD, inputs: Mapping[str, Tensor]) -> None:
        self.model, self.covariates = model, inputs["covariates"]
        self.all_genes = inputs["expression"]
        few = FEW_FEATURES // model.num_archetypes if has_many_genes(model) else model.num_genes
        self.genes = self.all_genes.var(0).argsort(descending=True)[:few].sort().values
        self.expression = self.all_genes[:, self.genes].double()
        total = len(self.expression)
        rows = torch.arange(total) if total <= MAX_CELLS else torch.randperm(total)[:MAX_CELLS]
        self.rows = rows.to(self.expression.device)
        self.density = self.given(np.arange(few))

    def start(self) -> _State:
        """Random weights of the encoder; genes by variance where it tells of their place, else at random."""
        model = self.model
        vector = torch.zeros(1, self.density.num_dims).to(model.encoder.location)
        for name, where in self.density.slices().items():
            if name == "encoder_weights":
                vector[:, where] = SPREAD * torch.randn_like(vector[:, where])
            elif name in model.encoder.hidden:
                vector[:, where] = model.encoder.hidden_weights()[name].reshape(1, -1).to(vector)
        if model.fixed_order is not None:
            order = torch.isin(model.fixed_order, self.genes).nonzero()[:, 0]
            order = torch.searchsorted(self.genes, model.fixed_order[order])
        elif model.noise == "equal":
            order = self.expression.var(0).argsort()
        else:
            order = torch.randperm(len(self.genes))
        return _State(order.cpu().numpy(), vector, -np.inf)

    def turn(self, state: _State, num_steps: int) -> _State:
        """The order given the mixture, then the encoder given the order."""
        order = state.order
        if self.model.fixed_order is None:
            mixture = self.mixture(state.vector, self.rows).cpu().double().numpy()
            score = OrderScore(self.expression[self.rows].cpu().numpy(), mixture, self.model.noise)
            order = climb(score, order, progress=False)
        held = ["encoder_log_amplitude"]
        found = ascend(
            self.given(order), state.vector, num_steps=num_steps, tolerance=TOLERANCE, held=held, progress=False
        )
        if found.interrupted:
            raise KeyboardInterrupt
        return _State(order, found.points, float(found.log_density))

    def finish(self, state: _State) -> _State:
        """Turns until the order stays."""
        for _ in range(NUM_TURNS):
            before, state = state, self.turn(state, LATER_STEPS)
            if np.array_equal(state.order, before.order):
                break
        return state

    def mixture(self, vector: Tensor, rows: Tensor) -> Float[Tensor, "cell archetype"]:
        """Z of some cells."""
        with torch.no_grad():
            return self.model.mixture_of(self.covariates[rows], self.density.unpack(vector))[0]

    def values(self, state: _State) -> dict[str, Tensor]:
        """Sites of the relaxed model: means of edges, intercepts and noise, all else as found."""
        noise, order = self.model.noise, torch.as_tensor(state.order, device=self.rows.device)
        mixture = self.mixture(state.vector, self.rows)
        in_order = mean_edges(mixture, self.expression[self.rows][:, order], noise)
        rank = order.argsort()
        archetypes, intercepts, sigma = in_order[0][:, rank][:, :, rank], in_order[1][:, rank], in_order[2][rank]
        off_diagonal = ~torch.eye(len(order), dtype=torch.bool, device=order.device)
        found = {name: value[0] for name, value in self.density.unpack(state.vector).items()}
        found |= {"edges": archetypes[:, off_diagonal], "intercepts": intercepts}
        return found | {"sigma": sigma[0] if noise == "equal" else sigma}

    def sparse_values(self, state: _State, progress: bool) -> dict[str, Tensor]:
        """`values` for many genes: their order by candidate regulators, and effects of these only."""
        model, like = self.model, self.model.encoder.location
        expression = self.all_genes.cpu().numpy()
        mixture = self.mixture(state.vector, torch.arange(len(expression))).cpu().numpy()
        score = SparseOrderScore(expression, mixture, model.noise)
        if model.fixed_order is not None:
            order = model.fixed_order.cpu().numpy()
        else:
            start = expression.var(0).argsort() if model.noise == "equal" else np.arange(model.num_genes)
            order = climb(score, start, progress=progress, max_sweeps=MAX_SWEEPS)
        archetypes, intercepts, variance = score.means(order)
        off_diagonal = ~np.eye(model.num_genes, dtype=bool)
        found = {name: value[0] for name, value in self.density.unpack(state.vector).items()}
        sigma = np.sqrt(variance.mean() if model.noise == "equal" else variance)
        new = {"edges": archetypes[:, off_diagonal], "intercepts": intercepts, "sigma": sigma}
        return found | {name: torch.as_tensor(value).to(like) for name, value in new.items()}

    def given(self, order: Int[np.ndarray, " gene"]) -> LogDensity:
        """Posterior of the encoder given the order, on the cells of the search."""
        model, dims = self.model, self.model.schema.site_dims
        expression = self.expression[self.rows][:, torch.as_tensor(order.copy(), device=self.rows.device)]

        def encoder_given_order(covariates: Tensor) -> None:
            drawn = model.encoder.weights(model.num_archetypes)
            theta = {name: value.unsqueeze(-1 - len(dims[name])) for name, value in drawn.items()}  # an axis of cells
            mixture = MIXING[model.mixing](model.encoder(covariates, theta))
            pyro.factor("evidence", log_evidence(mixture, expression, model.noise))

        return LogDensity(encoder_given_order, {"covariates": self.covariates[self.rows]})
