"""What a run left in its folder, read for a page: settings, metrics, results, lists, what was tuned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processor.ranking.results import Results, read_results
from processor.report.listing import RunLists, lists_path, read_lists
from utils.errors import DataError, shorten
from utils.log import parse_metrics
from utils.reading import parse_json, parse_yaml, read_json, read_text


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
    settings = _flat(_parsed(folder / "config.yml", lambda text: parse_yaml(text)[0]) or _of_lists(lists))
    grids = sorted((folder / "grids").glob("*.png"))
    return RunRecord(
        name=name,
        folder=folder,
        settings=settings,
        environment=_parsed(folder / "environment.json", parse_json),
        metrics=[values for line in _text(folder / "metrics.jsonl").splitlines() if (values := parse_metrics(line))],
        results=results,
        lists=lists,
        trials=_trials_of([folder, Path(results.weights["path"]).parent], results.weights["sha256"]) if results else [],
        grid=grids[-1] if grids else None,
    )


def _text(path: Path) -> str:
    try:
        return read_text(path) if path.is_file() else ""
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({shorten(str(error), 100)}); restore or remove it") from error


def _parsed(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The mapping that a file holds; empty without the file."""
    text = _text(path)
    try:
        content = parse(text) if text else {}
        if not isinstance(content, dict):
            raise ValueError("it holds no names and values")
        return content
    except ValueError as error:
        raise DataError(f"{path} is damaged ({shorten(str(error), 100)}); restore or remove it") from error


def _of_lists(lists: RunLists | None) -> dict[str, Any]:
    return parse_yaml(lists.config)[0] if lists else {}


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for section, value in content.items():
        flat |= {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {section: value}
    return flat


def _trials_of(folders: Sequence[Path], digest: str) -> list[Mapping[str, Any]]:
    """What `tools.tune` tried for weights of this SHA-256; files that are not its own are passed over."""
    for path in (path for folder in folders for path in sorted(folder.glob("*.tuning.json"))):
        try:
            content = read_json(path)
            if content["sha256"] == digest:
                return list(content.get("trials", []))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
    return []


def differing(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """The settings in which runs of one kind differ: key -> value of each; None for a run that does not tell.

    OUTPUT_DIR, which is never the same, and bridges beside re-identification are passed over.
    """
    told = [run.settings for run in runs if run.settings and run.is_bridge == runs[0].is_bridge]
    keys = [key for key in dict.fromkeys(key for settings in told for key in settings) if key != "OUTPUT_DIR"]
    differ = [key for key in keys if any(settings.get(key) != told[0].get(key) for settings in told)]
    return {key: [run.settings.get(key) if run.settings in told else None for run in runs] for key in differ}
