"""How weights were chosen, which their file says, and how the settings of their test were: a JSON file beside them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from datasets.records import Chip
from processor.resuming import describe_chips
from utils.files import write_json
from utils.reading import parse_json, read_bytes

Settings = Mapping[str, Any]
"""Keys of TEST -> values."""


@dataclass(frozen=True)
class SelectionSplit:
    """The images that the best weights are chosen on.

    Attributes:
        name: 'test', the query and gallery folders, as in the released programs; or 'validation'.
        fraction: of the training ships that validate (DATASETS.VAL_FRACTION); 0 for the test split.
        seed: that cut them (SOLVER.SEED).
        root: DATASETS.ROOT_DIR.
        images: a SHA-256 that tells these images from others (`processor.resuming.describe_chips`); empty if it is not known.
    """

    name: str
    fraction: float
    seed: int
    root: str = ""
    images: str = ""

    @property
    def words(self) -> str:
        """What the images are, for a line of text."""
        return "the validation ships" if self.name == "validation" else f"the query and gallery folders of {self.root}"


def build_split(cfg, images: Sequence[Chip] = ()) -> SelectionSplit:
    """The split of DATASETS.VAL_FRACTION, of which `images` are known or not."""
    fraction, known = cfg.DATASETS.VAL_FRACTION, describe_chips(images)["sha256"] if images else ""
    return SelectionSplit("validation" if fraction else "test", fraction, cfg.SOLVER.SEED, str(cfg.DATASETS.ROOT_DIR), known)


@dataclass(frozen=True)
class Selection:
    """Why a weights file is the best one of its run.

    Attributes:
        epoch: that it was written after.
        metric: 'mAP' or 'rank1', of the ALL protocol.
        score: its value, 0..1.
        split: 'test' or 'validation', where it was measured; 'other' if the test has other images than that query and gallery.
        fraction, seed, root, images: see `SelectionSplit`.
    """

    epoch: int
    metric: str
    score: float
    split: str
    fraction: float
    seed: int
    root: str = ""
    images: str = ""

    def sentence(self) -> str:
        """One line for whoever reads results made from these weights."""
        how = f"epoch {self.epoch}, best {self.metric} of ALL, {100 * self.score:.1f}"
        if self.split == "test":
            return f"weights chosen on the test split ({how}): figures of that split flatter them"
        if self.split == "other":
            return f"weights chosen on the query and gallery folders of {self.root}, which are not those of this test ({how})"
        return f"weights chosen on validation ships, {self.fraction:g} of the training set, seed {self.seed} ({how})"


_CODEC = TypeAdapter(Selection)

UNKNOWN = "the weights do not say on which split they were chosen"
"""Stands for `Selection.sentence` where there is no selection."""


def selection_of(description: Mapping[str, Any], images: Sequence[Chip] = ()) -> Selection | None:
    """Why weights are the best of their run, from what their file says of itself; None if it says nothing of it.

    Args:
        description: of the file.
        images: that the weights are tested on, if they are: not all query and gallery folders are this test's.
    """
    try:
        chosen = _CODEC.validate_json(json.dumps(description.get("selection")), strict=True)
    except ValueError:
        return None
    others = chosen.split == "test" and chosen.images and images and describe_chips(images)["sha256"] != chosen.images
    return replace(chosen, split="other") if others else chosen


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
