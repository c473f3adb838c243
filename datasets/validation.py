"""A validation part cut from the training set, so that nothing has to be chosen on the test split."""

from collections.abc import Sequence

from datasets.catalogue import HossData, have_match, label_ships, make_protocols, read_hoss
from datasets.curation.importing import ChipTable
from datasets.curation.splitting import split_chips
from datasets.records import Chip, Split
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


def hold_out(chips: Sequence[Chip], *, fraction: float, seed: int) -> HossData:
    """Cut a validation part of its own ships from training chips; the same chips, fraction and seed give the same part.

    The rule is that of `datasets.curation.splitting.split_chips`, which draws the ships that both sensors saw apart.
    A ship of the part gives one query of each sensor, its other chips the gallery; where a sensor saw it once only, it gives
    one query of one sensor, of either in turn. ALL takes all of them, O2S the optical queries and the SAR gallery, S2O the
    reverse; a cross-modal protocol without a query that has a match is left out.

    Args:
        chips: the training chips.
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
    table = ChipTable(
        chips=tuple(chips),
        ids={chip.path: chip.path.name for chip in chips},
        ships={chip.path: str(chip.ship) for chip in chips},
    )
    try:
        parts = split_chips(table, validation=fraction, test=0.0, seed=seed)
    except DataError as error:
        raise DataError(f"DATASETS.VAL_FRACTION: {error}") from error
    kept = set(parts[Split.TRAIN])
    train = tuple(chip for chip in chips if chip in kept)
    query, gallery = (
        sorted(parts[split], key=lambda chip: chip.path.name) for split in (Split.VALIDATION_QUERY, Split.VALIDATION_GALLERY)
    )
    images, protocols = (*query, *gallery), make_protocols(query, gallery)
    found = {name: protocol for name, protocol in protocols.items() if name == "ALL" or have_match(images, protocol)}
    return HossData(train=train, labels=label_ships(train), images=images, protocols=found)
