"""Splitting listed images by ship, and the numbers that ships have in HOSS layout."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from datasets.curation.importing import ListedImage
from datasets.records import DISTRACTOR, Modality
from utils.errors import DataError


@dataclass(frozen=True)
class Parts:
    """Which image goes where. Ships of training, validation and test are different ones.

    Attributes:
        train: training images.
        validation_query, validation_gallery: of ships to choose weights by; empty if there are none.
        query, gallery: of ships to test on; distractors are in a gallery.
    """

    train: tuple[ListedImage, ...]
    validation_query: tuple[ListedImage, ...]
    validation_gallery: tuple[ListedImage, ...]
    query: tuple[ListedImage, ...]
    gallery: tuple[ListedImage, ...]


def split_images(
    images: Sequence[ListedImage],
    *,
    validation: float,
    test: float,
    seed: int,
    task: tuple[Sequence[ListedImage], Sequence[ListedImage]] | None = None,
) -> Parts:
    """Split images by ship; the same table, shares and seed give the same parts, whatever the order of the lines.

    Ships that both sensors saw and ships that one sensor saw are drawn apart, so that every part has its share of either. A
    ship of one image has nothing to be found by and is for training. Of a ship that is not for training, one image of each
    sensor is a query; where a sensor saw it once only, an image of one of the two sensors is, of either in turn.

    Args:
        images: the table.
        validation: share of the ships for validation, 0 for none.
        test: share of the ships for the test; not used with a task.
        seed: of the draw.
        task: queries and gallery of the test, where they are given; other images of the queries' and the candidates' ships
            go nowhere.

    Raises:
        DataError: too few ships for a part that is asked for.
    """
    generator = np.random.default_rng(seed)
    ships: dict[str, list[ListedImage]] = {}
    for image in sorted(images, key=lambda image: image.image_id):
        ships.setdefault(image.ship, []).append(image)
    strangers = ships.pop("", [])
    query, gallery = [], []
    if task is not None:
        query, gallery = task
        taken = {image.image_id for image in (*query, *gallery)}
        strangers = [image for image in strangers if image.image_id not in taken]
        test_ships = {image.ship for image in (*query, *gallery)}
        ships = {ship: views for ship, views in ships.items() if ship not in test_ships}
        test = 0.0
    drawn = _draw_ships(ships, {"validation": validation, "test": test}, generator)
    train = [image for ship, views in ships.items() if ship not in drawn["validation"] | drawn["test"] for image in views]
    if not train:
        raise DataError("no ship is left for training; make the shares of validation and test smaller")
    validation_query, validation_gallery = _queries_and_gallery(ships, drawn["validation"], generator)
    if task is None:
        query, gallery = _queries_and_gallery(ships, drawn["test"], generator)
    # Distractors go to the galleries in the ratio of their shares; with a task, those that it does not name to validation.
    to_validation = generator.random(len(strangers)) < (validation / (validation + test) if validation else 0.0)
    validation_gallery += [image for image, chosen in zip(strangers, to_validation) if chosen]
    if task is None:
        gallery += [image for image, chosen in zip(strangers, to_validation) if not chosen]
    return Parts(*map(tuple, (train, validation_query, validation_gallery, query, gallery)))


def _draw_ships(
    ships: dict[str, list[ListedImage]], shares: dict[str, float], generator: np.random.Generator
) -> dict[str, set[str]]:
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
    ships: dict[str, list[ListedImage]], chosen: set[str], generator: np.random.Generator
) -> tuple[list[ListedImage], list[ListedImage]]:
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


def number_ships(images: Iterable[ListedImage]) -> dict[str, int]:
    """Give each ship its pid: its own number where all are numbers, else 1, 2, ... in sorted order; '' is `DISTRACTOR`."""
    ships = sorted({image.ship for image in images} - {""})
    # Spreadsheets write 12.0 for 12 in a column with empty cells.
    numbers = [re.fullmatch(r"([0-9]{1,18})(?:\.0)?", ship, re.ASCII) for ship in ships]
    if all(numbers):
        pids = {ship: int(match[1]) for ship, match in zip(ships, numbers)}
    else:
        pids = {ship: pid for pid, ship in enumerate(ships, start=1)}
    return pids | {"": DISTRACTOR}
