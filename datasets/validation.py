"""A validation part cut from the training set, so that nothing has to be chosen on the test split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets.curation.importing import ListedImage
from datasets.curation.splitting import split_images
from datasets.hoss import CROSS_PROTOCOLS, HossData, read_hoss
from datasets.records import Chip, Protocol, Split
from utils.errors import DataError


def build_training_data(cfg) -> HossData:
    """What a training reads: the chips to learn from, and the images and protocols that choose the best weights.

    With DATASETS.VAL_FRACTION 0 these are the test images, as in the released programs; above 0 they are those of
    `hold_out`, and no test image is listed or opened.

    Raises:
        DataError: see `read_hoss` and `hold_out`.
    """
    if not cfg.DATASETS.VAL_FRACTION:
        return read_hoss(cfg.DATASETS.ROOT_DIR)
    return build_validation_data(cfg)


def build_validation_data(cfg) -> HossData:
    """The validation part of DATASETS.VAL_FRACTION, cut by SOLVER.SEED, and the training set without it."""
    training = read_hoss(cfg.DATASETS.ROOT_DIR, test=False)
    return hold_out(training.train, fraction=cfg.DATASETS.VAL_FRACTION, seed=cfg.SOLVER.SEED)


def hold_out(records: Sequence[Chip], *, fraction: float, seed: int) -> HossData:
    """Cut a validation part of its own ships from training chips; the same chips, fraction and seed give the same part.

    The rule is that of `datasets.curation.splitting.split_images`, which draws the ships that both sensors saw apart.
    A ship of the part gives one query of each sensor, its other chips the gallery; where a sensor saw it once only, it gives
    one query of one sensor, of either in turn. ALL takes all of them, O2S the optical queries and the SAR gallery, S2O the
    reverse; a cross-modal protocol without a query that has a match is left out.

    Args:
        records: the training chips.
        fraction: share of the ships to hold out, above 0 and below 1.
        seed: of the draw.

    Returns:
        `train` and `labels` of the ships that are left; `images` and `protocols` of the part, whose splits are named
        'validation/query' and 'validation/gallery'.

    Raises:
        DataError: too few ships for the part or for training.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction is {fraction}; it lies between 0 and 1")
    listed = [ListedImage(record.path.name, record.path, str(record.ship), record.modality) for record in records]
    by_path: dict[Path, Chip] = {record.path: record for record in records}
    try:
        parts = split_images(listed, validation=fraction, test=0.0, seed=seed)
    except DataError as error:
        raise DataError(f"DATASETS.VAL_FRACTION: {error}") from error
    kept = {image.path for image in parts.train}
    train = tuple(record for record in records if record.path in kept)
    query, gallery = (
        sorted((replace(by_path[image.path], split=split) for image in images), key=lambda record: record.path.name)
        for images, split in (
            (parts.validation_query, Split.VALIDATION_QUERY),
            (parts.validation_gallery, Split.VALIDATION_GALLERY),
        )
    )
    labels = {pid: label for label, pid in enumerate(sorted({record.ship for record in train}))}
    return HossData(train=train, labels=labels, images=(*query, *gallery), protocols=_protocols(query, gallery))


def _protocols(query: Sequence[Chip], gallery: Sequence[Chip]) -> dict[str, Protocol]:
    """ALL, and each cross-modal protocol that has a query with a match, over the images (*query, *gallery)."""
    first = len(query)
    protocols = {"ALL": Protocol("ALL", tuple(range(first)), tuple(range(first, first + len(gallery))))}
    for name, (asking, asked) in CROSS_PROTOCOLS.items():
        queries = tuple(place for place, record in enumerate(query) if record.modality is asking)
        candidates = tuple(place for place, record in enumerate(gallery, start=first) if record.modality is asked)
        if {query[place].ship for place in queries} & {gallery[place - first].ship for place in candidates}:
            protocols[name] = Protocol(name, queries, candidates)
    return protocols
