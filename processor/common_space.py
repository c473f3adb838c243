"""A space of linear maps in which optical and SAR features of a ship meet, fitted to the training ships in closed form.

A network's features hold what the sensor is beside what the ship is. Here each modality's mean is taken off, and a linear map
of each modality keeps what the two sensors tell alike of a ship. It costs one product of a vector and a matrix an image.

Legend: I images, D width of the network's features, d of the space's; N training chips; X (optical) and Y (SAR) centred
features as rows; e the shrinkage: a covariance C becomes C + e trace(C) / D I, so it gains the share e of its mean variance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from datasets.catalogue import read_hoss
from datasets.records import Chip, Modality
from datasets.validation import build_training_data
from processor.extraction import Extractor
from utils.errors import DataError

LEAST_SHIPS = 3
"""Ships seen by both sensors below which nothing is fitted."""


@dataclass(frozen=True)
class CommonSpace:
    """The maps of a space.

    Attributes:
        kind: 'centre', 'ridge', 'lda' or 'cca'.
        shrinkage: e.
        dimensions: directions that were asked for; 0 for all.
        ships: training ships seen by both sensors.
        means: (2, D) float64 of the training features of each modality, by the value of `Modality`.
        maps: (2, D, d) float64, of each modality.
    """

    kind: str
    shrinkage: float
    dimensions: int
    ships: int
    means: Tensor
    maps: Tensor

    def map_images(self, features: Tensor, modalities: Sequence[int]) -> Tensor:
        """Features (I, D), of any norm, of images of these modalities (I,) -> (I, d) float32 of norm 1."""
        index = torch.as_tensor([int(modality) for modality in modalities])
        mapped = torch.stack([self._map(features, modality) for modality in Modality])
        return mapped[index, torch.arange(len(index))]

    def map_samples(self, features: Tensor) -> Tensor:
        """Features (..., D) of generated SAR pictures -> (..., d) float32 of norm 1."""
        return self._map(features, Modality.SAR)

    def _map(self, features: Tensor, modality: Modality) -> Tensor:
        centred = functional.normalize(features.double(), dim=-1) - self.means[modality]
        return functional.normalize(centred @ self.maps[modality], dim=-1).float()

    @property
    def settings(self) -> dict[str, Any]:
        """What it is, for results.json."""
        return {"kind": self.kind, "shrinkage": self.shrinkage, "dimensions": self.dimensions, "ships": self.ships}


def fit_centre(
    optical: Tensor, sar: Tensor, ships: tuple[Tensor, Tensor], *, shrinkage: float, dimensions: int
) -> list[Tensor]:
    """The centred features as they are; arguments of this and the functions below as `fit_space` gives them.

    Args:
        optical: X.
        sar: Y.
        ships: of each row of X, and of Y.
        shrinkage: e.
        dimensions: how many directions are kept; 0 for all.

    Returns:
        The map (D, d) of each modality.
    """
    del sar, ships, shrinkage, dimensions
    identity = torch.eye(optical.shape[1], dtype=optical.dtype)
    return [identity, identity]


def fit_ridge(optical: Tensor, sar: Tensor, ships: tuple[Tensor, Tensor], *, shrinkage: float, dimensions: int) -> list[Tensor]:
    """Ridge regression of a ship's mean SAR feature on each of its optical ones (Hoerl and Kennard, 1970); SAR stays as it is.

    B = (X'X / N + e trace / D I)^-1 X'M / N over the N optical chips of ships seen by both sensors, M the mean SAR feature of
    each chip's ship. With d below D it is of reduced rank (Izenman, 1975): B V V', V the first d right singular vectors of X B.
    """
    both, means = _means_of_shared(optical, sar, ships)
    chips = torch.isin(ships[0], both)
    own, wanted = optical[chips], means[1][torch.searchsorted(both, ships[0][chips])]
    slope = torch.linalg.solve(_shrunk(_covariance(own), shrinkage), own.T @ wanted / len(own))
    if 0 < dimensions < slope.shape[1]:
        directions = torch.linalg.svd(own @ slope, full_matrices=False).Vh[:dimensions]
        slope = slope @ directions.T @ directions
    return [slope, torch.eye(optical.shape[1], dtype=optical.dtype)]


def fit_lda(optical: Tensor, sar: Tensor, ships: tuple[Tensor, Tensor], *, shrinkage: float, dimensions: int) -> list[Tensor]:
    """Linear discriminant analysis of the ships seen by both sensors, one map for both (Fisher, 1936; Rao, 1948).

    W is the shrunk covariance of the chips of either sensor about their ship's mean, B that of the ships' means, each as often
    as the ship has chips; the map is W^-1/2 U, U the eigenvectors of W^-1/2 B W^-1/2 of the d (at most ships - 1) largest
    eigenvalues.
    """
    both, _ = _means_of_shared(optical, sar, ships)
    features, ship = torch.cat([optical, sar]), torch.cat(ships)
    chips = torch.isin(ship, both)
    features, place = features[chips], torch.searchsorted(both, ship[chips])
    centres = _mean_of_each(features, place, len(both))[place]
    white = _inverse_root(_shrunk(_covariance(features - centres), shrinkage))
    directions = torch.linalg.eigh(white @ _covariance(centres - features.mean(0)) @ white).eigenvectors.flip(1)
    mapping = white @ directions[:, : min(dimensions or len(white), len(both) - 1)]
    return [mapping, mapping]


def fit_cca(optical: Tensor, sar: Tensor, ships: tuple[Tensor, Tensor], *, shrinkage: float, dimensions: int) -> list[Tensor]:
    """Regularised canonical correlation analysis (Hotelling, 1936; Vinod, 1976), directions weighted by their correlation.

    Cx and Cy are the covariances over all chips of a sensor, shrunk; Cxy the mean over ships seen by both of the product of
    their mean features; Cx^-1/2 Cxy Cy^-1/2 = U S V'. The maps are Cx^-1/2 U S and Cy^-1/2 V S, of the d largest of S.
    """
    both, (of_optical, of_sar) = _means_of_shared(optical, sar, ships)
    white = [_inverse_root(_shrunk(_covariance(features), shrinkage)) for features in (optical, sar)]
    left, weights, right = torch.linalg.svd(white[0] @ (of_optical.T @ of_sar / len(both)) @ white[1])
    kept = slice(dimensions or None)
    return [white[0] @ left[:, kept] * weights[kept], white[1] @ right.T[:, kept] * weights[kept]]


FITS: dict[str, Callable[..., list[Tensor]]] = {"centre": fit_centre, "ridge": fit_ridge, "lda": fit_lda, "cca": fit_cca}
"""Kind of space -> the function that fits its maps."""


def fit_space(
    kind: str, features: Tensor, modalities: Sequence[int], ships: Sequence[int], *, shrinkage: float, dimensions: int
) -> CommonSpace:
    """Fit a space to training chips.

    Args:
        kind: a key of `FITS`.
        features: (N, D) of the network, of any norm.
        modalities: (N,) values of `Modality`.
        ships: (N,) pids.
        shrinkage: e, above 0.
        dimensions: d; 0 for all.

    Raises:
        DataError: fewer than `LEAST_SHIPS` ships seen by both sensors.
    """
    features = functional.normalize(features.double())
    taken = [torch.tensor([int(own) == modality for own in modalities], dtype=torch.bool) for modality in Modality]
    sides = [features[own] for own in taken]
    means = [side.mean(0) if len(side) else side.new_zeros(features.shape[1]) for side in sides]
    every = torch.as_tensor(list(ships))
    of_side = tuple(every[own] for own in taken)
    shared = len(set(of_side[0].tolist()) & set(of_side[1].tolist()))
    if shared < LEAST_SHIPS:
        raise DataError(
            f"TEST.COMMON_SPACE '{kind}' is fitted to training ships seen by both sensors, and there are {shared} of them, "
            f"fewer than {LEAST_SHIPS}; set it to 'off', or name more ships with DATASETS.ROOT_DIR"
        )
    centred = [side - mean for side, mean in zip(sides, means)]
    maps = FITS[kind](*centred, of_side, shrinkage=shrinkage, dimensions=dimensions)
    return CommonSpace(kind, shrinkage, dimensions, shared, torch.stack(means), torch.stack(maps))


def space_sentence(settings: Mapping[str, Any]) -> str:
    """`CommonSpace.settings` in a line, for below a table."""
    if settings["kind"] == "centre":
        return "features are compared less their modality's mean over the training ships"
    width = f"{settings['dimensions']} directions" if settings["dimensions"] else "all directions"
    how = f"shrinkage {settings['shrinkage']:g}, {width}, fitted to {settings['ships']} training ships"
    return f"features are compared in the common space '{settings['kind']}': {how}"


def build_space_chips(cfg) -> tuple[Chip, ...]:
    """The chips that a space is fitted to: those a training with this configuration learns from, and those of COMMON_SPACE_DIR.

    A network knows its own training ships by heart, so further ships, which it has never seen, tell more of what it does to
    a new one. Nothing is asked of them but which chips show one ship; they get pids that no training ship has.

    Raises:
        DataError: no training chips; see `datasets.catalogue.read_hoss`.
    """
    chips = build_training_data(cfg).train
    if not cfg.TEST.COMMON_SPACE_DIR:
        return chips
    first = 1 + max(chip.ship for chip in chips)
    further = read_hoss(cfg.TEST.COMMON_SPACE_DIR, test=False, key="TEST.COMMON_SPACE_DIR").train
    return (*chips, *(replace(chip, ship=first + chip.ship) for chip in further))


def build_common_space(cfg, extractor: Extractor) -> CommonSpace | None:
    """The space of TEST.COMMON_SPACE, fitted to `build_space_chips`; None if 'off'.

    Raises:
        DataError: no training chips, or too few ships seen by both sensors.
    """
    if cfg.TEST.COMMON_SPACE == "off":
        return None
    chips = build_space_chips(cfg)
    features = extractor.features(chips, description="features of training ships")
    settings = {"shrinkage": cfg.TEST.COMMON_SPACE_SHRINKAGE, "dimensions": cfg.TEST.COMMON_SPACE_DIMENSIONS}
    return fit_chips(cfg.TEST.COMMON_SPACE, features, chips, **settings)


def fit_chips(kind: str, features: Tensor, chips: Sequence[Chip], **settings: Any) -> CommonSpace:
    """`fit_space` to the features (N, D) of training chips."""
    return fit_space(kind, features, [chip.modality for chip in chips], [chip.ship for chip in chips], **settings)


def _means_of_shared(optical: Tensor, sar: Tensor, ships: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Ships seen by both sensors, ascending, and their mean optical and SAR features (ships, D)."""
    both = torch.unique(ships[0][torch.isin(ships[0], ships[1])])
    means = []
    for features, own in zip((optical, sar), ships):
        chips = torch.isin(own, both)
        means.append(_mean_of_each(features[chips], torch.searchsorted(both, own[chips]), len(both)))
    return both, means


def _mean_of_each(features: Tensor, places: Tensor, count: int) -> Tensor:
    """Mean of the rows of each place 0..count-1; none is empty."""
    sums = features.new_zeros(count, features.shape[1]).index_add(0, places, features)
    return sums / torch.bincount(places, minlength=count)[:, None]


def _covariance(deviations: Tensor) -> Tensor:
    return deviations.T @ deviations / len(deviations)


def _shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    width = len(covariance)
    return covariance + shrinkage * covariance.trace() / width * torch.eye(width, dtype=covariance.dtype)


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors / values.sqrt() @ vectors.T
