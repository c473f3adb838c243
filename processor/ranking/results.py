"""results.json, which `test.py` writes: its records, and the only place that writes or reads the file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, TypeAdapter, ValidationError

from processor.ranking.intervals import Interval
from processor.selection import Selection
from utils.errors import DataError
from utils.files import write_json
from utils.reading import read_json

RATES = ("mAP", "R1", "R5", "R10")
"""The figures of a protocol that are rates, each with an interval."""

KINDS = ("plain", "fused")
"""The figures without and with generated samples."""

Rate = Annotated[float, Field(ge=0, le=1)]
Ends = Annotated[Interval, PlainSerializer(lambda interval: interval.ends)]
"""An interval, of which the file holds both ends: the rest stands beside it."""


@dataclass(frozen=True)
class Outcome:
    """What became of one query.

    Attributes:
        query: file name.
        ship: its pid.
        AP: average precision, 0..1; None where the query has no match in the gallery and does not count.
        first_match: 1-based rank of its nearest match; 0 where there is none.
    """

    query: str
    ship: int
    AP: Rate | None
    first_match: int


@dataclass(frozen=True)
class Score:
    """The figures of one protocol; rates in 0..1.

    Attributes:
        mAP, R1, R5, R10: over the queries that count.
        queries, queries_counted, gallery: numbers of images; a query without a match in the gallery does not count.
        distractors: gallery images that match no query.
        chance: expected R1 of a random ranking, the mean of matches / images ranked over the queries that count.
        mAP_interval, R1_interval, R5_interval, R10_interval: 95 % intervals that allow for several queries of a ship
            (`processor.ranking.intervals`).
        per_query: the outcome of each query, counted or not, in the protocol's order.
    """

    mAP: Rate
    R1: Rate
    R5: Rate
    R10: Rate
    queries: int
    queries_counted: int
    gallery: int
    distractors: int
    chance: Rate
    mAP_interval: Ends
    R1_interval: Ends
    R5_interval: Ends
    R10_interval: Ends
    per_query: tuple[Outcome, ...]


@dataclass(frozen=True)
class Evaluation:
    """A protocol's scores without and with generated samples; `fused` is None where it has none."""

    plain: Score
    fused: Score | None = None


@dataclass(frozen=True)
class Results:
    """What a test found, and what it depends on: the content of results.json, in its order.

    Attributes:
        weights: path and sha256 of the checkpoint.
        selection: how it was chosen, where that is known.
        tuning: sentences on the settings that `tools.tune` chose for it.
        data: root of the data set, number of test images, and one sha256 over them.
        counting: what the figures count (`processor.ranking.evaluation.counting_rules`).
        tau: weight of generated samples.
        samples_per_image: how many were fused; 0 for none.
        protocols: by name.
        environment: see `utils.log.describe_environment`.
        common_space: `processor.common_space.CommonSpace.settings` of the space that features were compared in; the file leaves
            it out where there was none.
        precision: TEST.AMP, in which the network computed; the file leaves out 'off'.
    """

    weights: dict[str, str]
    selection: Selection | None
    tuning: list[str]
    data: dict[str, str | int]
    counting: dict[str, Any]
    tau: float
    samples_per_image: int
    protocols: dict[str, Evaluation]
    environment: dict[str, Any]
    common_space: dict[str, str | int | float] | None = None
    precision: str = "off"

    @property
    def scores(self) -> dict[tuple[str, str], Score]:
        """(protocol, 'plain' or 'fused') -> figures, of those that there are."""
        every = {(name, kind): getattr(self.protocols[name], kind) for name in self.protocols for kind in KINDS}
        return {key: score for key, score in every.items() if score is not None}


_CODEC = TypeAdapter(Results)


def results_path(folder: Path, *, path: str | Path, sha256: str) -> Path:
    """Where the results of the weights file `path` of this SHA-256 belong: beside, never over, results of other weights."""
    usual = folder / "results.json"
    try:
        before = read_json(usual)["weights"]["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return usual  # none are there
    return usual if before == sha256 else folder / f"results_{Path(path).stem}_{sha256[:8]}.json"


def write_results(path: Path, results: Results) -> None:
    """Write a results.json, whole or not at all."""
    content = _CODEC.dump_python(results, mode="json")
    for name, usual in (("common_space", None), ("precision", "off")):
        if content[name] == usual:
            del content[name]
    write_json(path, content)


def read_results(path: Path) -> Results:
    """Read a results.json.

    Raises:
        DataError: no such file, or one that `write_results` did not write; the message names the first field that is wrong.
    """
    try:
        content = read_json(path)
        figures = [protocol[kind] for protocol in content["protocols"].values() for kind in KINDS]
        for found in figures:
            if found is not None:
                found |= _intervals(found, content["counting"]["interval_level"])
        return _CODEC.validate_json(json.dumps(content), strict=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a results.json that test.py wrote") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        where = str(error) or type(error).__name__
    raise DataError(f"{path} is no results.json of this test.py, with the outcome of each query ({where}); test again")


def _intervals(figures: Mapping[str, Any], level: float) -> dict[str, Any]:
    """The intervals of a protocol's figures as they were before only their ends were written."""
    counted = {"level": level, "queries": figures["queries_counted"]}
    counted["ships"] = len({outcome["ship"] for outcome in figures["per_query"] if outcome["AP"] is not None})
    spelled = {}
    for rate in RATES:
        low, high = figures[f"{rate}_interval"]
        spelled[f"{rate}_interval"] = {"mean": figures[rate], "low": low, "high": high, **counted}
    return spelled
