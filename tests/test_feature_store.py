"""The feature store: what is reused, what never is, and that test.py gives the same results with it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import test as command
from datasets.catalogue import read_hoss
from model.build import build_model
from processor import extraction, feature_store
from processor.feature_store import build_origin, chip_contents, hash_files, stored
from tests.chip_files import write_chip, write_hoss
from tests.commands import call, settings, tiny_cfg
from tests.mutation import imports_of
from utils.checkpoint import load, save

CPU = torch.device("cpu")
CONTENTS = ["a .tif 0", "b .tif 1"]
VALUES = torch.arange(6.0).reshape(2, 3)


def never():
    raise AssertionError("extracted although it is stored")


ORIGIN = {"weights": "w"}


def fill(folder):
    assert stored(folder, ORIGIN, CONTENTS, lambda: VALUES)[0] is VALUES


def test_the_same_images_are_extracted_once(tmp_path):
    fill(tmp_path)
    values, seconds = stored(tmp_path, ORIGIN, CONTENTS, never)
    assert torch.equal(values, VALUES)
    assert seconds > 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".pth"]


@pytest.mark.parametrize("contents", [CONTENTS[::-1], [*CONTENTS, "c"], CONTENTS[:1], ["a .tif 1", "b .tif 1"]])
def test_other_images_or_another_order_are_not_the_same(tmp_path, contents):
    other = torch.zeros(len(contents), 3)
    fill(tmp_path)
    assert stored(tmp_path, ORIGIN, contents, lambda: other)[0] is other


def test_another_origin_is_not_the_same(tmp_path):
    fill(tmp_path)
    assert stored(tmp_path, {"weights": "v"}, CONTENTS, lambda: VALUES)[0] is VALUES


def test_without_a_folder_nothing_is_kept():
    for _ in range(2):
        assert stored(None, {}, [], lambda: VALUES)[0] is VALUES


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    entry = load(path)
    entry["features"][0, 0] += 1
    save(path, entry)


def foreign(path):
    stored(path.parent / "other", {"weights": "v"}, CONTENTS, lambda: VALUES + 1)
    shutil.copy(next((path.parent / "other").iterdir()), path)


def of(values):
    """The same entry with other values, whose digest is right."""

    def damage(path):
        digest = hashlib.sha256(values.numpy()).hexdigest()
        save(path, load(path) | {"features": values, "sha256": digest})

    return damage


OTHER = (
    VALUES.double(),
    VALUES.int(),
    VALUES[:, 0].clone(),
    VALUES[..., None],
    VALUES[:1],
    VALUES[:, :1].clone(),
    VALUES * torch.nan,
)


@pytest.mark.parametrize("values", OTHER, ids=lambda values: f"{values.dtype} {tuple(values.shape)}")
def test_values_of_another_type_or_shape_are_made_anew(tmp_path, values, caplog):
    fill(tmp_path)
    of(values)(next(tmp_path.glob("*.pth")))
    assert stored(tmp_path, ORIGIN, CONTENTS, lambda: VALUES, VALUES.shape[1])[0] is VALUES
    assert "made anew" in caplog.text


@pytest.mark.parametrize("damage", [cut, flip, foreign, lambda path: path.write_text("{}"), lambda path: save(path, {"a": 1})])
def test_what_is_damaged_or_foreign_is_made_anew(tmp_path, damage, caplog):
    fill(tmp_path)
    damage(next(tmp_path.glob("*.pth")))
    assert stored(tmp_path, ORIGIN, CONTENTS, lambda: VALUES)[0] is VALUES
    assert "made anew" in caplog.text
    assert torch.equal(stored(tmp_path, ORIGIN, CONTENTS, never)[0], VALUES)


def test_settings_that_change_features_change_the_origin():
    def origin(**changes):
        return build_origin(tiny_cfg(**changes), weights_sha256="w", device=CPU)

    plain = origin()
    assert json.dumps(plain)
    for changes in ({"INPUT__SIZE_TEST": "[48,32]"}, {"INPUT__SAR_LOW_PERCENT": 7}, {"TEST__NECK_FEAT": "after"}):
        assert origin(**changes) != plain
    for changes in ({"TEST__FUSION_TAU": 0.5}, {"TEST__RE_RANKING": True}, {"DATASETS__ROOT_DIR": "elsewhere"}):
        assert origin(**changes) == plain


def test_a_renamed_chip_is_the_same_and_a_changed_one_is_not(tmp_path):
    chip = write_chip(tmp_path / "HOSS" / "query" / "1_a_SAR.tif")
    write_chip(tmp_path / "HOSS" / "bounding_box_test" / "1_b_SAR.tif", seed=2)

    def contents():
        images = read_hoss(tmp_path, train=False).images
        return chip_contents(images, hash_files([record.path for record in images]))

    before = contents()
    chip = chip.rename(chip.with_name("1_c_SAR.tif"))
    assert contents() == before
    write_chip(chip, seed=3)
    assert contents() != before


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """Data, weights, samples and a store that test.py has filled."""
    root = tmp_path_factory.mktemp("tested")
    write_hoss(root / "data", train_ships=1, test_ships=2)
    torch.manual_seed(0)
    save(root / "weights.pth", build_model(tiny_cfg(), 3).state_dict())
    for chip in (root / "data" / "HOSS" / "query").glob("*_RGB.tif"):
        (root / "samples").mkdir(exist_ok=True)
        Image.effect_noise((24, 60), 50).convert("RGB").save(root / "samples" / f"{chip.stem}_0.png")
    assert run(root, "first").status == 0
    return root


def run(root, output, **changes):
    values = {
        "DATASETS__ROOT_DIR": root / "data",
        "DATASETS__QUERY_ADD_DIR": root / "samples",
        "OUTPUT_DIR": root / output,
        "TEST__WEIGHT": root / "weights.pth",
        "TEST__FEATURE_STORE": root / "store",
    }
    return call(command.main, *settings(**values | changes))


def results(root, output):
    return json.loads((root / output / "results.json").read_text())


def test_a_second_test_needs_no_network_and_gives_the_same(tested, monkeypatch):
    assert len(list((tested / "store").iterdir())) == 2
    monkeypatch.setattr(extraction, "extract_features", never)
    ended = run(tested, "second")
    assert ended.status == 0, ended.err
    assert results(tested, "second")["protocols"] == results(tested, "first")["protocols"]
    assert run(tested, "third", TEST__FUSION_TAU=0.5).status == 0


def test_other_weights_are_extracted(tested, tmp_path):
    torch.manual_seed(1)
    save(tmp_path / "other.pth", build_model(tiny_cfg(), 3).state_dict())
    entries = len(list((tested / "store").iterdir()))
    assert run(tested, "other", TEST__WEIGHT=tmp_path / "other.pth").status == 0
    assert len(list((tested / "store").iterdir())) == entries + 2
    assert results(tested, "other")["protocols"] != results(tested, "first")["protocols"]


def test_only_a_store_needs_the_hashes_of_samples(tested, monkeypatch):
    """Images are hashed for results.json, samples for the store alone."""
    hashed = []
    hash_files = feature_store.hash_files

    def note(paths):
        hashed.extend(path.name for path in paths)
        return hash_files(paths)

    for module in (command, extraction, feature_store):
        monkeypatch.setattr(module, "hash_files", note)
    assert run(tested, "unkept", TEST__FEATURE_STORE="").status == 0
    assert len(hashed) == 14
    assert not any(name.endswith("_0.png") for name in hashed)
    hashed.clear()
    assert run(tested, "kept").status == 0
    assert sum(name.endswith("_0.png") for name in hashed) == 2


def test_the_code_that_decides_features_is_what_the_extraction_imports():
    """Of the packages that read chips and compute features; a change of curation or of the ship drawer keeps what is stored."""
    root = Path(extraction.__file__).parent.parent
    covered = {path for pattern in feature_store.CODE for path in root.glob(pattern)}
    assert root / "processor" / "extraction.py" in covered
    needed, front = set(), {root / "processor" / "extraction.py"}
    while front:
        front = {file for one in front for file in imports_of(one)} - needed
        needed |= front
    of_features = {path for path in needed if path.parent.name in ("model", "datasets") and path.name != "__init__.py"}
    assert of_features and of_features <= covered
    assert {path.name for path in of_features} >= {"chips.py", "sar.py", "transforms.py", "transoss.py", "reid.py"}
    assert {path.parent.name for path in covered} == {"model", "datasets", "processor"}
