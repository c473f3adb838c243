"""What a run left in its folder, read for a page: settings, metrics, results, lists, what was tuned."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from processor.ranking.results import Results, read_results
from processor.report.listing import RunLists, lists_path, read_lists
from utils.errors import DataError


@dataclass(frozen=True)
class RunRecord:
    """A run, as its folder tells it.

    Attributes:
        name: of the folder, with as much of its path as tells the runs of a page apart.
        folder: where it lies.
        settings: dotted key -> value, of the training, else of the test; empty if neither is told.
        environment: of environment.json; empty without one.
        metrics: the lines of metrics.jsonl.
        results: of results.json, or None.
        lists: of ranking.npz, if it is of the same weights as `results`.
        trials: what `tools.tune` tried for the weights of the folder: setting, and protocol -> figures.
        grid: the last grid of a bridge, or None.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    results: Results | None
    lists: RunLists | None
    trials: Sequence[Mapping[str, Any]]
    grid: Path | None

    @property
    def is_bridge(self) -> bool:
        """Whether a bridge was trained: its loss and settings are of another kind."""
        return self.grid is not None or any("validation_loss" in line for line in self.metrics)

    def lines(self, kind: str) -> list[Mapping[str, Any]]:
        """The metrics of one kind: 'step', 'epoch', 'test' or 'validation'."""
        return [line for line in self.metrics if line.get("kind") == kind]


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Read some runs: folders, or of a folder with several tests a results file.

    Raises:
        DataError: one is no folder of a run, or holds a file that cannot be read.
    """
    return [_read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell them apart."""
    paths = [path.parent if path.name == "results.json" else path for path in paths]
    parts = [path.resolve().parts[1:] for path in paths]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return names  # one folder is named twice


def _read_run(path: Path, name: str) -> RunRecord:
    folder, file = (path, path / "results.json") if path.suffix != ".json" else (path.parent, path)
    if not file.is_file() and not (folder / "metrics.jsonl").is_file():
        raise DataError(f"{folder} holds neither metrics.jsonl nor results.json; name the OUTPUT_DIR of a training or a test")
    results = read_results(file) if file.is_file() else None
    lists = read_lists(lists_path(file)) if results else None
    if lists and lists.sha256 != results.weights["sha256"]:
        lists = None  # of an earlier test
    settings = _settings_of(_text(folder / "config.yml") or (lists.config if lists else ""))
    grids = sorted((folder / "grids").glob("*.png"))
    return RunRecord(
        name=name,
        folder=folder,
        settings=settings,
        environment=json.loads(_text(folder / "environment.json") or "{}"),
        metrics=[json.loads(line) for line in _text(folder / "metrics.jsonl").splitlines() if line.endswith("}")],
        results=results,
        lists=lists,
        trials=_trials_of([folder, Path(results.weights["path"]).parent], results.weights["sha256"]) if results else [],
        grid=grids[-1] if grids else None,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _settings_of(text: str) -> dict[str, Any]:
    content = yaml.safe_load(text) or {}
    flat = {}
    for section, value in content.items():
        flat |= {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {section: value}
    return flat


def _trials_of(folders: Sequence[Path], digest: str) -> list[Mapping[str, Any]]:
    for path in (path for folder in folders for path in sorted(folder.glob("*.tuning.json"))):
        content = json.loads(_text(path))
        if content.get("sha256") == digest:
            return content.get("trials", [])
    return []


def differing(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """The settings in which runs of one kind differ: key -> value of each; None for a run that does not tell.

    OUTPUT_DIR, which is never the same, and bridges beside re-identification are passed over.
    """
    told = [run.settings for run in runs if run.settings and run.is_bridge == runs[0].is_bridge]
    keys = [key for key in dict.fromkeys(key for settings in told for key in settings) if key != "OUTPUT_DIR"]
    differ = [key for key in keys if any(settings.get(key) != told[0].get(key) for settings in told)]
    return {key: [run.settings.get(key) if run.settings in told else None for run in runs] for key in differ}
