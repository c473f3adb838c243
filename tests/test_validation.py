"""The validation part of the training set, and the record of which split weights were chosen on."""

import hashlib
import json
import shutil
from collections import Counter

import pytest

import train
from configs import load_cfg
from datasets.catalogue import read_hoss
from datasets.records import Modality
from datasets.validation import hold_out
from processor.selection import build_split, selection_of
from tests.chip_files import write_hoss
from tests.commands import call, chosen_on, settings
from utils.checkpoint import description_of, load, save
from utils.errors import DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_hoss(tmp_path_factory.mktemp("data"), train_ships=10, test_ships=2, views=2)


@pytest.fixture(scope="module")
def records(data):
    return read_hoss(data, test=False).train


def test_no_ship_is_on_both_sides_and_no_chip_is_lost(records):
    part = hold_out(records, fraction=0.3, seed=1)
    assert {record.ship for record in part.images}.isdisjoint(part.labels)
    assert len({record.ship for record in part.images}) == 3
    assert sorted(record.path for record in (*part.train, *part.images)) == sorted(record.path for record in records)
    assert sorted(part.labels.values()) == list(range(7))
    assert {record.ship for record in part.train} == set(part.labels)


def test_a_ship_gives_one_query_of_each_sensor(records):
    part = hold_out(records, fraction=0.3, seed=1)
    protocol = part.protocols["ALL"]
    queries = Counter((part.images[index].ship, part.images[index].modality) for index in protocol.query)
    assert len(queries) == 6
    assert set(queries.values()) == {1}
    assert set(protocol.query) | set(protocol.gallery) == set(range(len(part.images)))
    for name, asking in (("O2S", Modality.OPTICAL), ("S2O", Modality.SAR)):
        cross = part.protocols[name]
        assert {part.images[index].modality for index in cross.query} == {asking}
        assert {part.images[index].modality for index in cross.gallery} == {Modality(1 - asking)}
    assert {part.images[index].split for index in protocol.query} == {"validation/query"}


def test_the_seed_decides_the_part_and_the_order_of_files_does_not(records):
    part = hold_out(records, fraction=0.3, seed=1)
    assert hold_out(records[::-1], fraction=0.3, seed=1).images == part.images
    others = [{record.ship for record in hold_out(records, fraction=0.3, seed=seed).images} for seed in range(5)]
    assert len({frozenset(ships) for ships in others}) > 1


@pytest.mark.parametrize(
    ("seed", "fraction", "counts", "expected"),
    [
        (0, 0.2, (70, 17), "4d55aac606b2629c"),
        (1234, 0.3, (59, 28), "010ea786e237b4db"),
        (7, 0.5, (44, 43), "0c2c33e2fd65c561"),
    ],
)
def test_a_seed_holds_out_the_chips_that_it_held_out_before(tmp_path, seed, fraction, counts, expected):
    chips = [
        chip
        for chip in read_hoss(write_hoss(tmp_path, train_ships=25), test=False).train
        if not (chip.ship % 5 == 0 and chip.modality is Modality.SAR)
        and not (chip.ship % 7 == 0 and chip.modality is Modality.OPTICAL and "c1" in chip.path.name)
    ]
    part = hold_out(chips, fraction=fraction, seed=seed)
    lines = [chip.path.name for chip in part.train] + [f"{chip.split}:{chip.path.name}" for chip in part.images]
    lines += [f"{name} {protocol.query} {protocol.gallery}" for name, protocol in part.protocols.items()]
    assert (len(part.train), len(part.images)) == counts
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == expected


def test_too_small_a_part_names_the_key(records):
    with pytest.raises(DataError, match=r"DATASETS\.VAL_FRACTION: .*raise it"):
        hold_out(records, fraction=0.01, seed=1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out(records, fraction=1.0, seed=1)


# A run


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of two epochs on a data set whose test folders are gone."""
    root, folder = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("run")
    shutil.copytree(data / "HOSS" / "bounding_box_train", root / "HOSS" / "bounding_box_train")
    ended = call(train.main, *arguments(root, folder))
    assert ended.status == 0, ended.err
    return root, folder


def arguments(root, folder, **changes):
    values = {"DATASETS__ROOT_DIR": root, "OUTPUT_DIR": folder, "DATASETS__VAL_FRACTION": 0.4, "SOLVER__MAX_EPOCHS": 2}
    return settings(**values | changes)


def test_training_with_a_validation_part_does_not_need_the_test_split(trained):
    _, folder = trained
    kinds = {json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()}
    assert "validation" in kinds
    assert "test" not in kinds
    assert load(folder / "best_model_mAP.pth")["classifier.weight"].shape[0] == 6
    assert "figures of the validation ships" in (folder / "train_log.txt").read_text()


def test_best_weights_say_which_split_chose_them(trained):
    weights = trained[1] / "best_model_mAP.pth"
    chosen = selection_of(description_of(load(weights)))
    assert (chosen.split, chosen.fraction, chosen.seed, chosen.metric) == ("validation", 0.4, 1234, "mAP")
    assert 0 < chosen.score <= 1
    assert "validation ships" in chosen.sentence()


def test_a_run_is_not_resumed_with_other_validation_ships(trained):
    root, folder = trained
    for change in ({"SOLVER__SEED": 5}, {"DATASETS__VAL_FRACTION": 0.3}):
        ended = call(train.main, *arguments(root, folder, SOLVER__RESUME=folder / "last.pth", **change))
        assert ended.status == 2
        assert "SOLVER.RESUME" in ended.sentence
        assert next(iter(change)).replace("__", ".") in ended.sentence


def test_a_renamed_copy_keeps_what_it_says_and_so_does_one_in_safetensors(trained, tmp_path):
    weights = trained[1] / "best_model_mAP.pth"
    chosen = selection_of(description_of(load(weights)))
    assert selection_of(description_of(load(shutil.copy(weights, tmp_path / "renamed.pth")))) == chosen
    save(tmp_path / "w.safetensors", load(weights), description_of(load(weights)))
    assert selection_of(description_of(load(tmp_path / "w.safetensors"))) == chosen


@pytest.mark.parametrize("change", [{"score": None}, {"epoch": "three"}, {"metric": 3}])
def test_a_record_that_is_no_record_is_passed_over(change):
    description = chosen_on("test")
    assert selection_of(description).epoch == 1
    assert selection_of({"selection": description["selection"] | change}) is None
    assert selection_of({}) is None


def test_a_choice_on_other_pictures_is_no_choice_on_these(data):
    """A training on the validation folder of an import, and a test on its parent."""
    images = read_hoss(data).images
    description = chosen_on("test")
    description["selection"] |= {"root": "data/validation", "images": build_split(load_cfg(), images).images}
    assert "chosen on the test split" in selection_of(description, images).sentence()
    other = selection_of(description, images[1:])
    assert other.split == "other"
    assert "folders of data/validation, which are not those of this test" in other.sentence()
