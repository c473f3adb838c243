"""Choosing among settings that were tried on the same queries, and what the choice is worth on queries it did not see.

Legend: I images, S of them with samples, K samples of each, D feature width.
"""

import itertools
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from datasets.records import Chip, Protocol
from processor.common_space import CommonSpace
from processor.fusion import SampleSet, fuse_images
from processor.ranking.comparison import METRICS, Comparison, compare_outcomes
from processor.ranking.evaluation import Ranking, rank_protocol, score_protocol
from processor.ranking.results import Outcome, Score
from utils.errors import UsageError, shorten
from utils.log import table

Store = tuple[str, SampleSet, Tensor, float]
"""A folder, its samples, features (S, K, D) of them, and the seconds that these took."""

Setting = tuple[Store, int, float]
"""A store, K of its samples, and their weight tau."""

VERDICTS = {"better": "pays", "worse": "harms", "no difference shown": "is not shown to pay"}


@dataclass(frozen=True)
class Trial:
    """One setting and its figures.

    Attributes:
        setting: what was tried, by name.
        scores: protocol -> figures.
        seconds: that it costs beside what every setting costs.
    """

    setting: Mapping[str, Any]
    scores: Mapping[str, Score]
    seconds: float


def score_features(
    protocols: Mapping[str, Protocol], records: Sequence[Chip], features: Tensor, ranking: Ranking
) -> dict[str, Score]:
    """The figures of every protocol with features (I, D) that are normalised where they should be."""
    return {
        name: score_protocol(protocol, rank_protocol(protocol, features, records, ranking), records)
        for name, protocol in protocols.items()
    }


def fusion_settings(stores: Sequence[Store], taus: Sequence[float], counts: Sequence[int]) -> Iterator[Setting]:
    """Store, K and tau of each trial; without `counts`, or where a store has none of them: one, half and all of its samples.

    Raises:
        UsageError: a K that no store has.
    """
    most = max(samples.per_image for _, samples, _, _ in stores)
    beyond = [count for count in counts if not 1 <= count <= most]
    if beyond:
        raise UsageError(f"--samples asks for K {beyond[0]}; the stores hold 1 to {most} samples of an image")
    for store in stores:
        own = store[1].per_image
        chosen = [count for count in counts if count <= own] or sorted({1, (own + 1) // 2, own})
        yield from ((store, count, tau) for count, tau in itertools.product(chosen, taus))


def try_fusion(
    protocols: Mapping[str, Protocol],
    records: Sequence[Chip],
    features: Tensor,
    ranking: Ranking,
    settings: Sequence[Setting],
) -> list[tuple[Trial, Tensor]]:
    """Score each setting of `fusion_settings`; also the fused features (I, D) of each."""
    trials = []
    for (name, samples, generated, seconds), count, tau in settings:
        start = time.perf_counter()
        fused = fuse_images(features, generated[:, :count], samples.sources, tau=tau)
        scores = score_features(protocols, records, fused, ranking)
        spent = time.perf_counter() - start + seconds * count / samples.per_image
        setting = {"store": name, "steps": name_steps(samples), "K": count, "tau": tau}
        trials.append((Trial(setting, scores, spent), fused))
    return trials


def name_steps(samples: SampleSet) -> int | str | None:
    """Network calls of a sample: a number, those of each run where they differ, or None where no manifest tells."""
    if len(samples.steps) < 2:
        return samples.steps[0] if samples.steps else None
    return " and ".join("unknown" if steps is None else str(steps) for steps in samples.steps)


def try_spaces(
    protocols: Mapping[str, Protocol],
    records: Sequence[Chip],
    features: Tensor,
    ranking: Ranking,
    spaces: Sequence[CommonSpace],
) -> list[tuple[Trial, CommonSpace]]:
    """Score each space of features; fitting it took its seconds before."""
    trials = []
    for space in spaces:
        start = time.perf_counter()
        mapped = space.map_images(features, [record.modality for record in records])
        scores = score_features(protocols, records, mapped, ranking)
        setting = {"space": space.kind, "shrinkage": space.shrinkage, "dimensions": space.dimensions}
        trials.append((Trial(setting, scores, time.perf_counter() - start), space))
    return trials


def try_reranking(
    protocols: Mapping[str, Protocol],
    records: Sequence[Chip],
    features: Tensor,
    ranking: Ranking,
    grid: Sequence[tuple[int, int, float]],
) -> list[Trial]:
    """Score each (k1, k2, lambda)."""
    trials = []
    for k1, k2, share in grid:
        start = time.perf_counter()
        own = replace(ranking, reranking={"k1": k1, "k2": k2, "lambda_value": share})
        scores = score_features(protocols, records, features, own)
        trials.append(Trial({"k1": k1, "k2": k2, "lambda": share}, scores, time.perf_counter() - start))
    return trials


def choose(trials: Sequence[Trial], *, protocol: str, metric: str, without: Collection[int] = ()) -> Trial:
    """The trial with the highest figure of a protocol, the first of equals, over queries of ships that are not in `without`.

    Args:
        trials: of the same queries.
        protocol: such as 'ALL'.
        metric: 'mAP' or 'R1'.
        without: pids of ships whose queries are not looked at.
    """
    value = METRICS[metric]
    excluded = frozenset(without)

    def figure(trial: Trial) -> float:
        outcomes = trial.scores[protocol].per_query
        return float(np.nanmean([value(outcome) for outcome in outcomes if outcome.ship not in excluded]))

    return max(trials, key=figure)


def choose_on_other_ships(
    trials: Sequence[Trial], *, protocol: str, metric: str, folds: int = 5, seed: int = 0
) -> dict[str, tuple[Outcome, ...]]:
    """Outcomes of each query under the setting that queries of other ships choose: cross-fitting.

    The best of many settings looks good on the queries that chose it, even where all are equal. Here the ships are dealt into
    `folds` parts, and the setting for each part is chosen on the rest.

    Returns:
        Protocol -> outcomes, of every protocol that the trials have.
    """
    counted = {outcome.ship for outcome in trials[0].scores[protocol].per_query if outcome.AP is not None}
    others = {outcome.ship for score in trials[0].scores.values() for outcome in score.per_query} - counted
    ships = np.random.default_rng(seed).permutation(sorted(counted)).tolist()
    found: dict[str, list[Outcome]] = {name: [] for name in trials[0].scores}
    parts = [set(ships[part::folds]) for part in range(min(folds, len(ships)))]
    for number, part in enumerate(parts):
        # The only ship there is can but choose for itself.
        best = choose(trials, protocol=protocol, metric=metric, without=part if len(parts) > 1 else ())
        own = part | others if number == 0 else part
        for name, score in best.scores.items():
            found[name] += [outcome for outcome in score.per_query if outcome.ship in own]
    return {name: tuple(outcomes) for name, outcomes in found.items()}


def compare_choice(
    baseline: Mapping[str, Score], trials: Sequence[Trial], *, protocol: str, metric: str
) -> dict[str, Comparison]:
    """What choosing among the trials gains over the baseline, by protocol, each query under a setting that others chose."""
    chosen = choose_on_other_ships(trials, protocol=protocol, metric=metric)
    return {name: compare_outcomes(baseline[name].per_query, outcomes, metric) for name, outcomes in chosen.items()}


def trials_table(trials: Sequence[Trial], best: Trial) -> str:
    """mAP / R1 of every protocol and seconds of each trial, in percent; the chosen one is marked."""
    names = list(trials[0].setting)
    protocols = list(trials[0].scores)
    rows = []
    for trial in trials:
        figures = [f"{100 * trial.scores[name].mAP:.1f}/{100 * trial.scores[name].R1:.1f}" for name in protocols]
        values = [_cell(trial.setting.get(name, "")) for name in names]
        values = values if trial.setting else ["without", *values[1:]]
        rows.append(["*" if trial is best else "", *values, *figures, f"{trial.seconds:.2f}"])
    return f"{table(['', *names, *protocols, 'seconds'], rows)}\n* chosen; mAP/R1"


def _cell(value: Any) -> str:
    """A setting in a narrow column; of a folder, its name."""
    return shorten(Path(value).name, 16) if isinstance(value, str) else str(value)


def verdict_text(gains: Mapping[str, Comparison], metric: str, what: str) -> str:
    """Whether the choice pays, by protocol."""
    lines = [f"verdict, {metric}, each query under the setting that queries of other ships choose:"]
    for name, found in gains.items():
        ends = f"{100 * found.difference.low:+.1f} .. {100 * found.difference.high:+.1f}"
        lines.append(f"  {name}: {what} {VERDICTS[found.verdict]} ({100 * found.difference.mean:+.1f} points, 95 % {ends})")
    return "\n".join(lines)


def report_dict(trials: Sequence[Trial], best: Trial, gains: Mapping[str, Comparison]) -> dict[str, Any]:
    """Trials, choice and gains for JSON."""

    def figures(score: Score) -> dict[str, Any]:
        rates = {rate: (getattr(score, rate), getattr(score, f"{rate}_interval").ends) for rate in METRICS}
        return {key: value for rate, (mean, ends) in rates.items() for key, value in ((rate, mean), (f"{rate}_interval", ends))}

    def gain(found: Comparison) -> dict[str, Any]:
        return {"difference": found.difference.mean, "interval": found.difference.ends, "verdict": found.verdict}

    scores = [{name: figures(score) for name, score in trial.scores.items()} for trial in trials]
    return {
        "trials": [{**trial.setting, "seconds": trial.seconds, **own} for trial, own in zip(trials, scores)],
        "chosen": dict(best.setting),
        "gain": {name: gain(found) for name, found in gains.items()},
    }
