"""The charts of a page, as SVG text: everything that is not data takes the colour of the page's text."""

import html
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from processor.ranking.intervals import mean_interval
from processor.ranking.results import KINDS, Score
from processor.report.runs import RunRecord

COLOURS = ("#3a86d8", "#e07b1f", "#2a9d6f", "#c9527f", "#8a6fd1", "#9a8b26")
"""Of data, to be told apart by most eyes and seen on white and on black."""

INK = "#010203"
"""Stands for the colour of the page's text until the SVG is written."""

DASHES = {"plain": "-", "fused": "--"}
LAST_RANK = 50
"""Of the CMC."""

STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mos",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.titlesize": 11,
}


@dataclass(frozen=True)
class Chart:
    """A chart of a page.

    Attributes:
        title: what it shows.
        group: the heading that it stands under.
        svg: the drawing.
        note: what a reader should know of it.
    """

    title: str
    group: str
    svg: str
    note: str = ""


class Drawing:
    """One chart in the making: `with Drawing(...) as axes`; `chart` holds it afterwards."""

    def __init__(self, title: str, group: str, note: str = ""):
        self.title, self.group, self.note, self.chart = title, group, note, None
        self._style = matplotlib.rc_context(STYLE)

    def __enter__(self) -> Axes:
        self._style.__enter__()
        self._figure = Figure(figsize=(4.6, 3.1), layout="constrained")
        axes = self._figure.subplots()
        axes.set_title(self.title, loc="left")
        axes.margins(x=0.02)
        return axes

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            axes = self._figure.axes[0]
            if axes.get_legend_handles_labels()[0] and axes.get_legend() is None:
                axes.legend()
            stream = io.StringIO()
            self._figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            text = stream.getvalue()
            text = text[text.index("<svg") :].replace(INK, "currentColor")
            self.chart = Chart(self.title, self.group, _named(text, f"{self.group} {self.title}"), self.note)
        self._style.__exit__(*error)


def _named(svg: str, title: str) -> str:
    """The drawing with its ids told apart from those of others on the page, and a name for who cannot see it."""
    prefix = "".join(letter if letter.isalnum() else "-" for letter in title) + "-"
    for before in ('id="', "url(#", 'href="#'):
        svg = svg.replace(before, before + prefix)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def draw_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Every chart that the runs have data for."""
    bridges, others = ([run for run in runs if run.is_bridge is kind] for kind in (True, False))
    charts = [*_training(others, "Training"), *_figures(others), *_training(bridges, "Training of the bridge"), *_cmc(runs)]
    return [*charts, *_distances(runs), *_sizes(runs)] + [chart for run in runs for chart in _tuning(run)]


# Training


def _training(runs: Sequence[RunRecord], group: str) -> Iterable[Chart]:
    """Loss terms, accuracy and learning rate over epochs."""
    several = len(runs) > 1
    names = dict.fromkeys(key for run in runs for line in run.lines("epoch") for key in line)
    terms = [name for name in names if name not in ("kind", "epoch", "seconds", "steps_per_second", "memory_mb", "accuracy")]
    if several or len(terms) == 1:
        terms = [name for name in terms if name == "loss"]
    if terms:
        with (drawing := Drawing("Loss", group, "mean over each epoch")) as axes:
            for run in runs:
                for term in terms:
                    _plot(axes, run.lines("epoch"), term, run.name if several else term)
            axes.set_xlabel("epoch")
        yield drawing.chart
    for key, title, kind in (("accuracy", "Accuracy on training batches", "epoch"), ("lr", "Learning rate", "step")):
        if any(key in line for run in runs for line in run.lines(kind)):
            with (drawing := Drawing(title, group)) as axes:
                for run in runs:
                    _plot(axes, run.lines(kind), key, run.name if several else None)
                axes.set_xlabel("epoch")
            yield drawing.chart
    if any(run.lines("validation") and "validation_loss" in run.lines("validation")[0] for run in runs):
        with (drawing := Drawing("Loss of held-out pairs", group)) as axes:
            for run in runs:
                _plot(axes, run.lines("validation"), "validation_loss", run.name if several else None)
            axes.set_xlabel("epoch")
        yield drawing.chart


def _plot(axes: Axes, lines: Sequence[Mapping[str, Any]], key: str, label: str | None) -> None:
    points = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)


def _figures(runs: Sequence[RunRecord]) -> Iterable[Chart]:
    """mAP and R1 with their intervals at each evaluation of a training: of each protocol, or of ALL for several runs."""
    several = len(runs) > 1
    for rate in ("mAP", "R1"):
        curves: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for run in runs:
            for line in (*run.lines("test"), *run.lines("validation")):
                if rate in line and (not several or line["protocol"] == "ALL"):
                    curves[run.name if several else line["protocol"]].append(line)
        if not curves:
            continue
        of = "ALL, each run" if several else "each protocol"
        split = "validation ships" if any(run.lines("validation") for run in runs) else "query and gallery"
        with (drawing := Drawing(f"{rate} of {of}", "Training", f"of {split}, with 95 % intervals")) as axes:
            for name, lines in curves.items():
                epochs, values = [line["epoch"] for line in lines], [100 * line[rate] for line in lines]
                low, high = (np.array([line[f"{rate}_interval"][end] for line in lines]) * 100 for end in (0, 1))
                drawn = axes.plot(epochs, values, marker=".", label=name)
                axes.fill_between(epochs, low, high, color=drawn[0].get_color(), alpha=0.15, linewidth=0)
            axes.set_xlabel("epoch")
            axes.set_ylabel(f"{rate}, %")
        yield drawing.chart


# Test


def _cmc(runs: Sequence[RunRecord]) -> Iterable[Chart]:
    """Share of queries with a match among the nearest k images, of each protocol, plain and fused."""
    tested = [run for run in runs if run.results]
    for protocol in dict.fromkeys(name for run in tested for name in run.results.protocols):
        with (drawing := Drawing(f"CMC of {protocol}", "Ranking", "share of queries with a match among the nearest k")) as axes:
            for colour, run in zip(_colours(), tested):
                for kind in KINDS:
                    if score := run.results.scores.get((protocol, kind)):
                        label = kind if len(tested) == 1 else f"{run.name}, {kind}"
                        ranks, shares = _cumulative(score)
                        axes.plot(ranks, shares, color=colour, linestyle=DASHES[kind], label=label)
            axes.set_xlabel("k")
            axes.set_ylabel("%")
            axes.set_ylim(0, 102)
            axes.legend(loc="lower right")
        yield drawing.chart


def _colours() -> Iterable[str]:
    while True:
        yield from COLOURS


def _cumulative(score: Score) -> tuple[np.ndarray, np.ndarray]:
    ranks = np.arange(1, min(LAST_RANK, score.gallery) + 1)
    first = np.array([outcome.first_match for outcome in score.per_query if outcome.AP is not None])
    return ranks, 100 * (first[:, None] <= ranks).mean(0)


def _distances(runs: Sequence[RunRecord]) -> Iterable[Chart]:
    """Histograms of the distances of a query to images of its ship and to others."""
    for run in runs:
        for (protocol, kind), lists in (run.lists.lists if run.lists else {}).items():
            if kind == "fused":
                continue
            name = f", {run.name}" if len(runs) > 1 else ""
            with (drawing := Drawing(f"Distances in {protocol}{name}", "Distances", "share of pairs, plain features")) as axes:
                for colour, label, counts in zip(COLOURS[2:], ("same ship", "others"), (lists.matches, lists.others)):
                    share = counts / max(1, counts.sum())
                    axes.stairs(share, lists.edges, fill=True, alpha=0.35, color=colour, label=label)
                    axes.stairs(share, lists.edges, color=colour)
                axes.set_xlabel("distance")
                axes.xaxis.set_major_locator(MaxNLocator(5))
            yield drawing.chart


def _sizes(runs: Sequence[RunRecord]) -> Iterable[Chart]:
    """Width and height of each query of ALL, by whether its nearest image shows its ship."""
    for run in runs:
        score = run.results.scores.get(("ALL", "plain")) if run.results else None
        if not (run.lists and score):
            continue
        sizes = {image.path.rsplit("/", 1)[-1]: image.size for image in run.lists.images}
        told = [(*sizes[outcome.query], outcome) for outcome in score.per_query if outcome.AP is not None]
        name = f", {run.name}" if len(runs) > 1 else ""
        with (drawing := Drawing(f"Size of the queries of ALL{name}", "Size of the ship", _by_length(told))) as axes:
            for hit, colour, marker in ((True, COLOURS[2], "o"), (False, "#d1495b", "x")):
                own = [(width, height) for width, height, outcome in told if (outcome.first_match == 1) is hit]
                if own:
                    label = f"{'hit' if hit else 'miss'} at rank 1 ({len(own)})"
                    style = {"facecolors": "none", "edgecolors": colour} if hit else {"color": colour}
                    axes.scatter(*zip(*own, strict=True), marker=marker, s=22, label=label, linewidths=1, **style)
            axes.set_xlabel("width, pixels")
            axes.set_ylabel("height, pixels")
        yield drawing.chart


def _by_length(told: Sequence[tuple]) -> str:
    """R1 of the third of the queries with the smallest pictures, of the middle and of the largest."""
    told = sorted(told, key=lambda item: max(item[:2]))
    thirds = [part for part in np.array_split(np.arange(len(told)), 3) if len(part)]
    words = []
    for part in thirds:
        own = [told[place] for place in part]
        hits = mean_interval([float(item[2].first_match == 1) for item in own], [item[2].ship for item in own])
        longest = [max(item[:2]) for item in own]
        words.append(f"{longest[0]} to {longest[-1]} pixels long: {100 * hits.mean:.1f} ({hits.percent()})")
    return f"R1 by the longer side, with 95 % intervals: {'; '.join(words)}"


def _tuning(run: RunRecord) -> Iterable[Chart]:
    """mAP of ALL against tau, a curve for each K, where `tools.tune` tried them."""
    curves: dict[tuple, list[tuple]] = defaultdict(list)
    for trial in run.trials:
        if "tau" in trial and "ALL" in trial:
            curves[trial.get("steps"), trial["K"]].append((trial["tau"], trial["ALL"]["mAP"], trial["ALL"]["mAP_interval"]))
    if not curves:
        return
    with (drawing := Drawing(f"mAP of ALL against tau, {run.name}", "Fusion", "95 % intervals of the largest K")) as axes:
        for (steps, count), points in curves.items():
            taus, values, ends = (np.array(column) for column in zip(*sorted(points), strict=True))
            drawn = axes.plot(taus, 100 * values, marker=".", label=f"K {count}" + (f", {steps} steps" if steps else ""))
            if count == max(number for _, number in curves):
                axes.fill_between(taus, *(100 * ends.T), color=drawn[0].get_color(), alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlabel("tau")
        axes.set_ylabel("mAP, %")
    yield drawing.chart
