"""Splitting chips by ship."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datasets.curation.importing import ChipTable
from datasets.records import Chip, Modality, Split
from utils.errors import DataError


def split_chips(
    table: ChipTable,
    *,
    validation: float,
    test: float,
    seed: int,
    task: tuple[Sequence[Chip], Sequence[Chip]] | None = None,
) -> dict[Split, tuple[Chip, ...]]:
    """Split chips by ship; the same table, shares and seed give the same parts, whatever the order of the lines.

    Ships that both sensors saw and ships that one sensor saw are drawn apart, so that every part has its share of either. A
    ship of one image has nothing to be found by and is for training. Of a ship that is not for training, one image of each
    sensor is a query; where a sensor saw it once only, an image of one of the two sensors is, of either in turn.

    Args:
        table: the chips.
        validation: share of the ships for validation, 0 for none.
        test: share of the ships for the test; not used with a task.
        seed: of the draw.
        task: queries and gallery of the test, where they are given; other images of the queries' and the candidates' ships
            go nowhere.

    Returns:
        Of TRAIN, VALIDATION_QUERY, VALIDATION_GALLERY, QUERY and GALLERY the chips, whose split is now that one. Ships of
        training, validation and test are different ones; distractors are in a gallery.

    Raises:
        DataError: too few ships for a part that is asked for.
    """
    generator = np.random.default_rng(seed)
    ships: dict[str, list[Chip]] = {}
    for chip in sorted(table.chips, key=lambda chip: table.ids[chip.path]):
        ships.setdefault(table.ships[chip.path], []).append(chip)
    strangers = ships.pop("", [])
    if task is None:
        parts = _draw_parts(ships, strangers, validation, test, generator)
    else:
        test_ships = {table.ships[chip.path] for side in task for chip in side}
        ships = {ship: views for ship, views in ships.items() if ship not in test_ships}
        strangers = [chip for chip in strangers if chip not in set(task[1])]
        parts = _draw_parts(ships, strangers, validation, None, generator) | {Split.QUERY: task[0], Split.GALLERY: task[1]}
    return {split: tuple(replace(chip, split=split) for chip in chips) for split, chips in parts.items()}


def _draw_parts(
    ships: dict[str, list[Chip]],
    strangers: Sequence[Chip],
    validation: float,
    test: float | None,
    generator: np.random.Generator,
) -> dict[Split, Sequence[Chip]]:
    """Draw training, validation and test; `test` None: no ship and no distractor is for the test."""
    drawn = _draw_ships(ships, {"validation": validation, "test": test or 0.0}, generator)
    train = [chip for ship, views in ships.items() if ship not in drawn["validation"] | drawn["test"] for chip in views]
    if not train:
        raise DataError("no ship is left for training; make the shares of validation and test smaller")
    parts: dict[Split, Sequence[Chip]] = {Split.TRAIN: train}
    validation_query, validation_gallery = _queries_and_gallery(ships, drawn["validation"], generator)
    query, gallery = ([], []) if test is None else _queries_and_gallery(ships, drawn["test"], generator)
    # Distractors go to the galleries in the ratio of their shares; with a task, those that it does not name to validation.
    to_validation = generator.random(len(strangers)) < (validation / (validation + (test or 0.0)) if validation else 0.0)
    validation_gallery += [chip for chip, chosen in zip(strangers, to_validation) if chosen]
    gallery += [chip for chip, chosen in zip(strangers, to_validation) if not chosen]
    parts |= {Split.VALIDATION_QUERY: validation_query, Split.VALIDATION_GALLERY: validation_gallery}
    return parts | {Split.QUERY: query, Split.GALLERY: gallery}


def _draw_ships(ships: dict[str, list[Chip]], shares: dict[str, float], generator: np.random.Generator) -> dict[str, set[str]]:
    """Draw disjoint sets of ships for the named shares of all ships."""
    drawn: dict[str, set[str]] = {name: set() for name in shares}
    for sensors in (2, 1):
        group = sorted(ship for ship, views in ships.items() if len({view.modality for view in views}) == sensors)
        able = [ship for ship in generator.permutation(group).tolist() if len(ships[ship]) > 1]
        for name, share in shares.items():
            count = min(round(share * len(group)), len(able))
            drawn[name].update(able[:count])
            able = able[count:]
    for name, share in shares.items():
        if share and not drawn[name]:
            raise DataError(
                f"{len(ships)} ships are too few for a {name} share of {share:g}: it holds no ship of two images; raise it"
            )
    return drawn


def _queries_and_gallery(
    ships: dict[str, list[Chip]], chosen: set[str], generator: np.random.Generator
) -> tuple[list[Chip], list[Chip]]:
    """Take the queries out of the images of the chosen ships, so that each query leaves a match of every other sensor."""
    queries, gallery = [], []
    turn = int(generator.integers(2))
    for ship in sorted(chosen):
        by_sensor = [[view for view in ships[ship] if view.modality is modality] for modality in Modality]
        asking = [views for views in by_sensor if views]
        if len(asking) == 2 and min(map(len, asking)) == 1:
            asking = [asking[turn]]
            turn = 1 - turn
        own = [views[generator.integers(len(views))] for views in asking]
        queries += own
        gallery += [view for view in ships[ship] if view not in own]
    return queries, gallery
