"""The HTML page of some runs: self-contained, so that it opens from disk and can be sent by mail."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from processor.ranking.intervals import METHOD
from processor.ranking.results import RATES, Score
from processor.report.charts import Chart, draw_charts
from processor.report.pictures import file_uris
from processor.report.runs import RunRecord, differing, read_runs
from processor.report.sheets import SheetData, collect_sheets, collect_strips, order_queries
from processor.selection import UNKNOWN
from utils import distributed
from utils.files import write_text

logger = logging.getLogger(__name__)

PAGE_QUERIES = 500
"""Queries of a page; the next ones stand on the next page, `report-2.html` ..."""

GRID_LIMIT = (1200, 900)
"""Largest width and height of a bridge's grid on a page, in pixels."""


def write_report(
    paths: Sequence[Path], output: Path, *, root: Path | None = None, attention: int = 40, page_queries: int = PAGE_QUERIES
) -> list[Path]:
    """Write the page of some runs; returns the files, more than one where there are many queries.

    Args:
        paths: OUTPUT_DIR of each run, or a results file in it.
        output: the first page.
        root: of the data set, if it is not where the runs found it.
        attention: of how many queries it is shown where the network looked; 0 for none.
        page_queries: how many queries a page has.

    Raises:
        DataError: see `processor.report.runs.read_runs`.
    """
    runs = read_runs(paths)
    names, charts = order_queries(runs), draw_charts(runs)
    starts = range(0, max(1, len(names)), page_queries)
    written = [output if not place else output.with_stem(f"{output.stem}-{place + 1}") for place in range(len(starts))]
    for place, (start, path) in enumerate(zip(starts, written, strict=True)):
        data = collect_sheets(runs, names[start : start + page_queries], root=root, attention=attention)
        pages = [
            {"file": other.name, "label": f"{first + 1} to {min(first + page_queries, len(names))}", "current": other == path}
            for first, other in zip(starts, written, strict=True)
        ]
        write_text(path, _render(runs, charts if not place else [], data, pages))
    return written


def report_path(run: Path) -> Path:
    """Where the page of a run lies: report.html in its folder, report_x.html beside results_x.json."""
    return run.with_name(run.name.replace("results", "report", 1)).with_suffix(".html") if run.suffix else run / "report.html"


def build_page(cfg, run: Path) -> None:
    """Write the page of a finished run, a folder or a results file, if TEST.REPORT asks for it. No fault of it stops a run."""
    if not cfg.TEST.REPORT or not distributed.is_main():
        return
    try:
        paths = write_report([run], report_path(run))
    except Exception as error:  # a page is no reason to lose a run
        logger.warning("no report.html was written: %s", " ".join(str(error).split()) or type(error).__name__)
        return
    logger.info("a page of this run: %s", paths[0])


def _render(runs: Sequence[RunRecord], charts: Sequence[Chart], data: SheetData, pages: Sequence[Mapping[str, Any]]) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    files = {name: (Path(__file__).parent / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    several = len(runs) > 1
    rows = [row for run in runs for row in _rows(run, several)]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for chart in charts:
        groups.setdefault(chart.group, []).append(vars(chart) | {"svg": jinja2.filters.do_mark_safe(chart.svg)})
    grids = file_uris([str(run.grid) for run in runs if run.grid], GRID_LIMIT)
    content = {key: value for key, value in asdict(data).items() if key != "notes"}
    return environment.get_template("page.html.j2").render(
        title=f"Run {runs[0].name}" if not several else f"{len(runs)} runs: {', '.join(run.name for run in runs)}",
        headlines=[headline(run) if not several else f"{run.name}: {headline(run)}" for run in runs],
        columns=["run", "protocol", "features", *RATES, "chance", "queries", "gallery"][0 if several else 1 :],
        rows=rows,
        figures_note=f"In percent, with 95 % intervals ({METHOD}).",
        differences=[(key, [_told(value) for value in values]) for key, values in differing(runs).items()],
        groups=list(groups.items()),
        grid=collect_strips(runs, data),
        bridge_grids=[{"name": run.name, "uri": grids[str(run.grid)]} for run in runs if str(run.grid) in grids],
        runs=[{"name": run.name, "details": _details(run)} for run in runs],
        pages=pages,
        # Only the end of a script element could end it early.
        data=jinja2.filters.do_mark_safe(json.dumps(content).replace("<", "\\u003c")) if data.sets else "",
        data_note=" ".join(dict.fromkeys(data.notes)),
        style=jinja2.filters.do_mark_safe(files["css"]),
        script=jinja2.filters.do_mark_safe(files["js"]),
    )


def _told(value: Any) -> str:
    return "" if value is None else str(value)


def _rows(run: RunRecord, several: bool) -> list[list[dict[str, str]]]:
    """A row of the table for each protocol, plain and fused."""
    rows = []
    for (protocol, kind), score in (run.results.scores if run.results else {}).items():
        cells = [{"text": run.name}] if several else []
        cells += [{"text": protocol}, {"text": kind}, *(_rate(score, rate) for rate in RATES)]
        counted = f"{score.queries_counted} of {score.queries}" if score.queries_counted < score.queries else str(score.queries)
        rows.append([*cells, {"text": f"{100 * score.chance:.1f}"}, {"text": counted}, {"text": str(score.gallery)}])
    return rows


def _rate(score: Score, rate: str) -> dict[str, str]:
    return {"text": f"{100 * getattr(score, rate):.1f}", "small": getattr(score, f"{rate}_interval").percent()}


def headline(run: RunRecord) -> str:
    """What was run and what came of it, in one line."""
    told = []
    if run.settings:
        kind = "TRANSFORMER_TYPE" if run.settings.get("MODEL.NAME") == "transformer" else "NAME"
        steps = len(run.lines("epoch"))
        told.append(str(run.settings.get(f"MODEL.{kind}", "a network")) if not run.grid else "a bridge")
        told.append(f"{steps} epochs, seed {run.settings.get('SOLVER.SEED')}" if steps else "no training in this folder")
    if run.results:
        scores = ((protocol, kind, score) for (protocol, kind), score in run.results.scores.items())
        told += [
            f"{name} {kind} mAP {100 * score.mAP:.1f}, R1 {100 * score.R1:.1f}" for name, kind, score in scores if name == "ALL"
        ]
        told.append(run.results.selection.sentence() if run.results.selection else UNKNOWN)
        told.append(f"{run.results.data['images']} test images")
    device = run.environment.get("device_name")
    return "; ".join([*told, *([str(device)] if device else [])])


def _details(run: RunRecord) -> list[tuple[str, str]]:
    """Everything that was run, by heading."""
    parts = [("Folder", str(run.folder))]
    if command := run.environment.get("command"):
        parts.append(("Command", " ".join(command)))
    if run.results:
        facts = {"weights": run.results.weights, "data": run.results.data, "counting": run.results.counting}
        facts |= {"tau": run.results.tau, "samples_per_image": run.results.samples_per_image, "tuning": run.results.tuning}
        parts.append(("Test", json.dumps(facts | {"environment": run.results.environment}, indent=2)))
    if run.environment:
        parts.append(("Environment of the training", json.dumps(run.environment, indent=2)))
    if run.settings:
        parts.append(("Settings", "\n".join(f"{key}: {value}" for key, value in run.settings.items())))
    return parts
