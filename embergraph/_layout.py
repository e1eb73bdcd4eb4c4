"""Positions for drawing directed graphs: layers from regulators to targets, or a circle where there are cycles."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

import networkx as nx

Point = tuple[float, float]
Layers = list[list[Hashable]]


def layered_layout(
    graph: nx.DiGraph,
) -> tuple[dict[Hashable, Point], dict[tuple[Hashable, Hashable], list[Point]]]:
    """Place a graph's nodes so that its edges run downwards, with few crossings (Sugiyama, Tagawa & Toda 1981).

    Parameters
    ----------
    graph
        Nodes without edges go into a row of their own at the bottom. With cycles, nodes are placed on a circle.

    Returns
    -------
    positions : dict
        x and y of every node; neighbours in a row are at least 0.9 apart, rows 1.
    routes : dict
        Points that every edge passes between its ends, around the nodes of the rows in between; none on a circle.
    """
    if not nx.is_directed_acyclic_graph(graph):
        radius = len(graph) / 5
        circle = nx.circular_layout(sorted(graph, key=str), scale=radius)
        return {node: (float(x), float(y)) for node, (x, y) in circle.items()}, {edge: [] for edge in graph.edges}
    isolated = sorted(nx.isolates(graph), key=str)
    proper, chains = _with_bends(graph.subgraph(set(graph) - set(isolated)))
    layers = _ordered(proper)
    x = _spread(proper, layers)
    placed = {node: (x[node], -float(row)) for row, layer in enumerate(layers) for node in layer}
    middle = sum(x.values()) / len(x) if x else 0.0
    for i, node in enumerate(isolated):
        placed[node] = (middle + i - (len(isolated) - 1) / 2, -float(len(layers)))
    routes = {edge: [placed[bend] for bend in bends] for edge, bends in chains.items()}
    return {node: placed[node] for node in graph}, routes


def _with_bends(graph: nx.DiGraph) -> tuple[nx.DiGraph, dict[tuple[Hashable, Hashable], list[Hashable]]]:
    """Give edges that span several rows a bend in each row that they pass, so that every edge spans one row."""
    proper = nx.DiGraph()
    row = {node: i for i, layer in enumerate(nx.topological_generations(graph)) for node in layer}
    for source in sorted(graph, key=str):  # a source sits right above its first target
        if not graph.in_degree(source):
            row[source] = min(row[target] for target in graph.successors(source)) - 1
    for node in sorted(graph, key=str):
        proper.add_node(node, row=row[node])
    chains = {}
    for source, target in sorted(graph.edges, key=str):
        bends: list[Hashable] = [("bend", source, target, i) for i in range(row[source] + 1, row[target])]
        for i, bend in enumerate(bends):
            proper.add_node(bend, row=row[source] + 1 + i)
        nx.add_path(proper, [source, *bends, target])
        chains[source, target] = bends
    return proper, chains


def _ordered(proper: nx.DiGraph) -> Layers:
    """Sort every row by the mean place of its neighbours, down and up in turns, and keep the fewest crossings."""
    layers: Layers = [[] for _ in range(1 + max(nx.get_node_attributes(proper, "row").values(), default=-1))]
    for node, row in proper.nodes(data="row"):
        layers[row].append(node)
    best, fewest = [list(layer) for layer in layers], _crossings(proper, layers)
    for sweep in range(24):
        down = sweep % 2 == 0
        for i in range(len(layers)) if down else reversed(range(len(layers))):
            other = i - 1 if down else i + 1
            if 0 <= other < len(layers):
                near = proper.predecessors if down else proper.successors
                place = {node: j for j, node in enumerate(layers[other])}
                means = {node: _mean([place[m] for m in near(node)]) for node in layers[i]}
                layers[i].sort(key=means.__getitem__)
        crossings = _crossings(proper, layers)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    return best


def _crossings(proper: nx.DiGraph, layers: Layers) -> int:
    total = 0
    for upper, lower in itertools.pairwise(layers):
        place = {node: j for j, node in enumerate(lower)}
        ends = [
            place[target] for source in upper for target in sorted(proper.successors(source), key=place.__getitem__)
        ]
        total += sum(first > second for first, second in itertools.combinations(ends, 2))
    return total


def _spread(proper: nx.DiGraph, layers: Layers) -> dict[Hashable, float]:
    """Pull nodes towards their neighbours, keeping the order in a row and a distance of 0.9 (0.5 between bends)."""
    x = {node: float(j) - (len(layer) - 1) / 2 for layer in layers for j, node in enumerate(layer)}
    for _ in range(30):
        for layer in layers:
            wanted = [_mean([x[m] for m in nx.all_neighbors(proper, node)], x[node]) for node in layer]
            gaps = [0.5 if isinstance(a, tuple) and isinstance(b, tuple) else 0.9 for a, b in itertools.pairwise(layer)]
            for node, value in zip(layer, _apart(wanted, gaps), strict=True):
                x[node] = value
    return x


def _apart(wanted: list[float], gaps: list[float]) -> list[float]:
    """Move positions as little as possible (in the mean of a push right and a push left) until they are apart."""
    right, left = list(wanted), list(wanted)
    for j, gap in enumerate(gaps):
        right[j + 1] = max(right[j + 1], right[j] + gap)
    for j in reversed(range(len(gaps))):
        left[j] = min(left[j], left[j + 1] - gaps[j])
    return [(a + b) / 2 for a, b in zip(left, right, strict=True)]


def _mean(values: list[float], default: float = 0.0) -> float:
    return sum(values) / len(values) if values else default
