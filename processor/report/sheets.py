"""What each query found, as the data that a page's script draws sheets from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from datasets.loaders import build_chip_reading
from datasets.records import Chip
from processor.ranking.lists import NO_IMAGE
from processor.ranking.results import Outcome
from processor.report.listing import ListedImage
from processor.report.pictures import build_rollouts, chip_uris, file_uris
from processor.report.runs import RunRecord
from utils.checkpoint import sha256
from utils.errors import CheckpointError, DataError, UsageError

STRIPS = 8
"""Rows of optical, SAR and generated pictures."""


@dataclass
class SheetData:
    """What the script of a page needs.

    Attributes:
        images: of all runs, each once: n name, s ship, m modality, w and h pixels, p key of its picture, g keys of samples.
        pictures: key -> data URI.
        sets: of each run, protocol and kind, its queries in the page's order.
        rollouts: run -> place of an image -> where the network looked.
        notes: sentences on what is left out.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    sets: list[dict[str, Any]] = field(default_factory=list)
    rollouts: dict[str, dict[int, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def order_queries(runs: Sequence[RunRecord]) -> list[str]:
    """Names of the queries that are listed, the worst of the first run first: far matches, then low average precision."""
    outcomes: dict[str, Outcome] = {}
    for run in runs:
        for _, score, _ in _sets_of(run):
            outcomes = {outcome.query: outcome for outcome in score.per_query} | outcomes
    return sorted(outcomes, key=lambda name: _badness(outcomes[name]))


def _badness(outcome: Outcome) -> tuple:
    """Small for bad queries; those that do not count come last."""
    return outcome.AP is None, -outcome.first_match, outcome.AP or 0.0, outcome.query


def _sets_of(run: RunRecord) -> Iterator[tuple]:
    """Protocol and kind, figures and lists of what a run has all of."""
    for key, score in (run.results.scores if run.lists else {}).items():
        if key in run.lists.lists:
            yield key, score, run.lists.lists[key]


def collect_sheets(
    runs: Sequence[RunRecord], names: Sequence[str], *, root: Path | None = None, attention: int = 0
) -> SheetData:
    """Everything that the sheets of some queries show.

    Args:
        runs: of the page.
        names: of the queries, in the order in which they are shown.
        root: of the data set, if it is not where the runs found it.
        attention: of how many queries, the first ones, it is shown where the network looked.
    """
    data, order = SheetData(), {name: place for place, name in enumerate(names)}
    places: dict[str, int] = {}
    for run in runs:
        if run.lists:
            _add_run(data, run, order, places, root or Path(run.lists.root), attention)
    return data


def _add_run(
    data: SheetData, run: RunRecord, order: dict[str, int], places: dict[str, int], root: Path, attention: int
) -> None:
    images, own = run.lists.images, {}
    for (protocol, kind), score, lists in _sets_of(run):
        queries = []
        for row, outcome in enumerate(score.per_query):
            if outcome.query not in order:
                continue
            near = [index for index in lists.nearest[row].tolist() if index != NO_IMAGE]
            wanted = [int(lists.query[row]), *near, *([int(lists.match[row])] if outcome.first_match else [])]
            for index in wanted:
                own[index] = _place(data, images[index], places)
            queries.append(
                {
                    "q": own[wanted[0]],
                    "ap": outcome.AP,
                    "first": outcome.first_match,
                    "near": [own[index] for index in near],
                    "dist": [float(f"{value:.4g}") for value in lists.distances[row][: len(near)].tolist()],
                    "match": own[wanted[-1]] if outcome.first_match else None,
                    "md": float(f"{lists.match_distance[row]:.4g}") if outcome.first_match else None,
                }
            )
        queries.sort(key=lambda query: order[data.images[query["q"]]["n"]])
        found = {"run": run.name, "protocol": protocol, "kind": kind, "gallery": score.gallery, "queries": queries}
        data.sets.append(found)
    try:
        read = build_chip_reading(CfgNode(yaml.safe_load(run.lists.config)))
    except AttributeError as error:  # a key that the configuration has gained since
        raise DataError(f"{run.folder} was tested by an earlier version ({error}); test again for a page of it") from error
    missing = {images[index].path: images[index].chip(root) for index in own if images[index].path not in data.pictures}
    data.pictures |= chip_uris(missing, read)
    data.pictures |= file_uris(path for index in own for path in images[index].samples if path not in data.pictures)
    if attention:
        _add_rollouts(data, run, {place: images[index].chip(root) for index, place in own.items()}, attention)


def _place(data: SheetData, image: ListedImage, places: dict[str, int]) -> int:
    """Where an image stands on the page, after adding it if it is new."""
    if image.path not in places:
        places[image.path] = len(data.images)
        width, height = image.size
        name, sensor = image.path.replace("\\", "/").rsplit("/", 1)[-1], "SAR" if image.sar else "optical"
        told = {"n": name, "s": image.ship, "m": sensor, "w": width, "h": height, "p": image.path, "g": list(image.samples)}
        data.images.append(told)
    return places[image.path]


def _add_rollouts(data: SheetData, run: RunRecord, chips: Mapping[int, Chip], attention: int) -> None:
    """Where the network looked at the first queries of a run and at the nearest picture of each."""
    first = next((found for found in data.sets if found["run"] == run.name), {"queries": []})
    wanted = dict.fromkeys(place for query in first["queries"][:attention] for place in (query["q"], *query["near"][:1]))
    readable = [place for place in wanted if data.images[place]["p"] in data.pictures]
    weights = Path(run.lists.weights)
    if not weights.is_file() or sha256(weights) != run.lists.sha256:
        data.notes.append(f"Where {run.name} looked is not shown: its weights are not at hand.")
        return
    cfg = CfgNode(yaml.safe_load(run.lists.config))
    cfg.DATALOADER.NUM_WORKERS = 0
    try:
        data.rollouts[run.name] = dict(zip(readable, build_rollouts(cfg, weights, [chips[place] for place in readable])))
    except (CheckpointError, UsageError) as error:
        data.notes.append(f"Where {run.name} looked is not shown: {error}.")
        return
    if len(first["queries"]) > attention:
        data.notes.append(f"Where it looked is shown for the {attention} worst queries and the nearest picture of each.")


def collect_strips(runs: Sequence[RunRecord], data: SheetData) -> list[list[dict[str, str]]]:
    """Rows of an optical query, a SAR picture of its ship and the pictures generated from it, evenly over the queries."""
    sources = [image for image in data.images if image["g"] and image["p"] in data.pictures]
    step = max(1, math.ceil(len(sources) / STRIPS))
    real = {image["s"]: image for image in data.images if image["m"] == "SAR" and image["p"] in data.pictures}
    strips = []
    for image in sources[::step]:
        strip = [{"label": f"optical, ship {image['s']}", "uri": data.pictures[image["p"]]}]
        if image["s"] in real:
            strip.append({"label": f"SAR, ship {image['s']}", "uri": data.pictures[real[image["s"]]["p"]]})
        generated = [key for key in image["g"] if key in data.pictures]
        strip += [{"label": f"generated {k}", "uri": data.pictures[key]} for k, key in enumerate(generated, start=1)]
        strips.append(strip)
    return strips
