"""How weights were chosen: a JSON file beside them, since checkpoints are bare state dicts that hold tensors only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from utils.checkpoint import sha256
from utils.files import write_json
from utils.reading import parse_json, read_bytes

Settings = Mapping[str, Any]
"""Keys of TEST -> values."""


@dataclass(frozen=True)
class SelectionSplit:
    """The images that the best weights are chosen on.

    Attributes:
        name: 'test', as in the released programs, or 'validation'.
        fraction: of the training ships that validate (DATASETS.VAL_FRACTION); 0 for the test split.
        seed: that cut them (SOLVER.SEED).
    """

    name: str
    fraction: float
    seed: int


def build_split(cfg) -> SelectionSplit:
    """The split of DATASETS.VAL_FRACTION."""
    fraction = cfg.DATASETS.VAL_FRACTION
    return SelectionSplit("validation" if fraction else "test", fraction, cfg.SOLVER.SEED)


@dataclass(frozen=True)
class Selection:
    """Why a weights file is the best one of its run.

    Attributes:
        sha256: of the weights file.
        epoch: that it was written after.
        metric: 'mAP' or 'rank1', of the ALL protocol.
        score: its value, 0..1.
        split: 'test' or 'validation', where it was measured.
        fraction: see `SelectionSplit`.
        seed: see `SelectionSplit`.
    """

    sha256: str
    epoch: int
    metric: str
    score: float
    split: str
    fraction: float
    seed: int

    def sentence(self) -> str:
        """One line for whoever reads results made from these weights."""
        how = f"epoch {self.epoch}, best {self.metric} of ALL, {100 * self.score:.1f}"
        if self.split == "test":
            return f"weights chosen on the test split ({how}): figures of that split flatter them"
        return f"weights chosen on validation ships, {self.fraction:g} of the training set, seed {self.seed} ({how})"


_CODEC = TypeAdapter(Selection)

UNKNOWN = "no record beside the weights says on which split they were chosen"
"""Stands for `Selection.sentence` where there is no selection."""


def write_selection(weights: Path, *, epoch: int, metric: str, score: float, split: SelectionSplit) -> None:
    """Write `<weights less .pth>.json` for a weights file that is already written."""
    chosen = Selection(sha256(weights), epoch, metric, score, split.name, split.fraction, split.seed)
    write_json(weights.with_suffix(".json"), asdict(chosen))


def find_selection(weights: str | Path, digest: str) -> Selection | None:
    """What a JSON file beside `weights` says of the file of SHA-256 `digest`; None if none speaks of it.

    Files are matched by content, so that a renamed copy keeps its record and a replaced file does not inherit one.
    """
    for text in _texts(Path(weights).parent, "*.json"):
        try:
            chosen = _CODEC.validate_json(text, strict=True)
        except ValueError:
            continue  # results.json and what else lies there
        if chosen.sha256 == digest:
            return chosen
    return None


def write_tuning(
    weights: Path,
    *,
    digest: str,
    split: str,
    settings: Sequence[Settings],
    not_recommended: Sequence[Settings],
    trials: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write `<weights less .pth>.tuning.json`: settings of the test that `tools.tune` chose for a weights file.

    Args:
        weights: the file.
        digest: its SHA-256.
        split: 'test' or 'validation', whose queries chose.
        settings: keys of TEST -> values, for each choice that pays: of fusion, of re-ranking.
        not_recommended: the best settings of what is not shown to pay, since a test with them shall be told, too.
        trials: of fusion, each with its figures, for the page of a run.
    """
    content = {"sha256": digest, "split": split, "settings": list(settings), "not_recommended": list(not_recommended)}
    write_json(weights.with_suffix(".tuning.json"), content | {"trials": list(trials)})


def build_tuning_sentences(cfg, digest: str) -> list[str]:
    """What a reader should know of the choices of `tools.tune` that this configuration uses, one sentence each."""
    test = {f"TEST.{key}": value for key, value in cfg.TEST.items()}
    fuses, sentences = bool(cfg.DATASETS.QUERY_ADD_DIR or cfg.DATASETS.GALLERY_ADD_DIR), []
    for text in _texts(Path(cfg.TEST.WEIGHT).parent, "*.tuning.json"):
        try:
            content = parse_json(text)
            if content["sha256"] != digest:
                continue
            choices = [(keys, "") for keys in content["settings"]]
            choices += [(keys, " and not shown to pay there") for keys in content.get("not_recommended", [])]
            where = "the test split: figures of that split flatter them" if content["split"] == "test" else "validation ships"
            sentences += [f"{_told(keys)} chosen on {where}{doubt}" for keys, doubt in choices if _is_used(keys, test, fuses)]
        except (ValueError, LookupError, TypeError, AttributeError):
            continue  # not of tools.tune
    return sentences


def _is_used(settings: Settings, test: Settings, fuses: bool) -> bool:
    unused = "TEST.FUSION_TAU" in settings and not fuses
    return not unused and settings == {key: test.get(key) for key in settings}


def _told(settings: Settings) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _texts(folder: Path, pattern: str) -> Iterator[bytes]:
    """What the files of a folder hold, less those that cannot be read."""
    for path in sorted(folder.glob(pattern)):
        try:
            yield read_bytes(path)
        except OSError:
            continue
