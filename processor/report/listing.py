"""ranking.npz, which a test writes beside results.json: what a page of ranked pictures needs beside the pictures."""

import json
import math
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from datasets.catalogue import HossData
from datasets.chips import read_header
from datasets.records import Chip, Modality, Split
from processor.fusion import SampleSet
from processor.ranking.evaluation import Ranking
from processor.ranking.lists import NO_IMAGE, ProtocolLists, list_nearest
from utils.errors import DataError, shorten
from utils.files import replacing
from utils.reading import open_regular, parse_json

FIELDS = tuple(ProtocolLists.__dataclass_fields__)

ARRAYS_LIMIT = 2**28
"""Bytes of all arrays of a file: the lists of half a million listed pictures."""


@dataclass(frozen=True)
class ListedImage:
    """A test image that is a query or stands on a list.

    Attributes:
        path: relative to the root of the data set, or absolute if it lies elsewhere.
        ship: its pid.
        sar: whether a SAR sensor took it.
        size: width and height in pixels.
        samples: absolute paths of the pictures generated from it.
    """

    path: str
    ship: int
    sar: bool
    size: tuple[int, int]
    samples: tuple[str, ...] = ()

    def chip(self, root: Path) -> Chip:
        """As a record that can be read."""
        return Chip(root / self.path, self.ship, Modality.SAR if self.sar else Modality.OPTICAL, Split.QUERY)


@dataclass(frozen=True)
class RunLists:
    """What the queries of a test found, with all that a page needs to show it.

    Attributes:
        root: of the data set, absolute.
        config: of the test, as YAML.
        weights: path of the checkpoint, absolute.
        sha256: of it; that of the results.json beside.
        images: those that are listed.
        lists: (protocol, 'plain' or 'fused') -> lists, whose indices are places in `images`.
    """

    root: str
    config: str
    weights: str
    sha256: str
    images: tuple[ListedImage, ...]
    lists: Mapping[tuple[str, str], ProtocolLists]


def build_lists(
    cfg,
    data: HossData,
    ranking: Ranking,
    features: Tensor,
    *,
    fused: Tensor | None = None,
    samples: SampleSet | None = None,
    weights_sha256: str,
) -> RunLists:
    """List what the queries of every protocol found, plain and, where its images have samples, fused.

    Args:
        cfg: of the test.
        data: test images and protocols.
        ranking: how galleries are ranked.
        features: (I, D), not normalised.
        fused: (I, D) after fusion, if there are samples.
        samples: of the images, if there are any.
        weights_sha256: of the checkpoint.
    """
    features = functional.normalize(features) if ranking.normalise else features
    sources = dict(zip(samples.sources, samples.chips, strict=True)) if samples else {}
    found = {}
    for name, protocol in data.protocols.items():
        found[name, "plain"] = list_nearest(protocol, features, data.images, ranking)
        if fused is not None and not sources.keys().isdisjoint((*protocol.query, *protocol.gallery)):
            found[name, "fused"] = list_nearest(protocol, fused, data.images, ranking)
    queries = {index for protocol in data.protocols.values() for index in protocol.query}
    listed = queries.union(*(lists.nearest.ravel().tolist() + lists.match.tolist() for lists in found.values())) - {NO_IMAGE}
    places = {index: place for place, index in enumerate(sorted(listed))}
    moved = np.array([places.get(index, NO_IMAGE) for index in range(len(data.images))] + [NO_IMAGE], np.int32)
    root = Path(cfg.DATASETS.ROOT_DIR).resolve()
    return RunLists(
        root=str(root),
        config=cfg.dump(),
        weights=str(Path(cfg.TEST.WEIGHT).resolve()),
        sha256=weights_sha256,
        images=tuple(_listed(data.images[index], root, sources.get(index, ()) if index in queries else ()) for index in places),
        lists={
            key: replace(lists, query=moved[lists.query], nearest=moved[lists.nearest], match=moved[lists.match])
            for key, lists in found.items()
        },
    )


def _listed(chip: Chip, root: Path, samples: Sequence[Chip]) -> ListedImage:
    path = chip.path.resolve()
    return ListedImage(
        path=str(path.relative_to(root) if path.is_relative_to(root) else path),
        ship=chip.ship,
        sar=chip.modality is Modality.SAR,
        size=read_header(path)[0],
        samples=tuple(str(sample.path.resolve()) for sample in samples),
    )


def lists_path(results: Path) -> Path:
    """Where the lists of a results file lie: ranking.npz beside results.json, ranking_x.npz beside results_x.json."""
    return results.with_name(results.name.replace("results", "ranking", 1)).with_suffix(".npz")


def write_lists(path: Path, lists: RunLists) -> None:
    """Write lists, whole or not at all."""
    facts = asdict(replace(lists, lists={})) | {"lists": ["/".join(key) for key in lists.lists]}
    arrays = {"/".join((*key, name)): getattr(value, name) for key, value in lists.lists.items() for name in FIELDS}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, facts=np.array(json.dumps(facts)), **arrays)


def read_lists(path: Path) -> RunLists | None:
    """What `write_lists` wrote; None where there is no such file.

    Raises:
        DataError: the file is damaged, or another program's.
    """
    if not path.is_file():
        return None
    try:
        _check_arrays(path)
        with np.load(path, allow_pickle=False) as file:
            facts: dict[str, Any] = parse_json(_text_of(file["facts"]))
            keys = [tuple(key.split("/")) for key in facts.pop("lists")]
            lists = {key: ProtocolLists(**{name: file["/".join((*key, name))] for name in FIELDS}) for key in keys}
        images = [
            ListedImage(**image | {"size": tuple(image["size"]), "samples": tuple(image["samples"])})
            for image in facts.pop("images")
        ]
        return RunLists(**facts, images=tuple(images), lists=lists)
    except Exception as error:  # zlib, tokenize and zipfile each have errors of their own at damaged arrays
        fault = shorten(str(error), 100)
        raise DataError(f"{path} is no ranking of a test, or is damaged ({fault}); test again") from error


def _text_of(array: np.ndarray) -> str:
    """The text of an array; NumPy makes one of any numbers, and Python then stumbles over what are no letters."""
    if array.dtype.kind != "U" or array.ndim:
        raise ValueError("its facts are no text")
    letters = np.atleast_1d(array).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
    if letters.size and letters.max() > sys.maxunicode:
        raise ValueError("its facts hold what are no letters")
    return array.item()


def _check_arrays(path: Path) -> None:
    """Refuse arrays that declare more values than the file holds, or than a page can have, before memory is taken for them."""
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        if sum(part.file_size for part in archive.infolist()) > ARRAYS_LIMIT:
            raise ValueError(f"it declares more than {ARRAYS_LIMIT:,} bytes")
        for part in archive.infolist():
            with archive.open(part) as array:
                old = np.lib.format.read_magic(array) == (1, 0)
                read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(array)
                if math.prod(shape) * dtype.itemsize > part.file_size:
                    raise ValueError(f"{part.filename} declares {math.prod(shape):,} values and holds fewer")
