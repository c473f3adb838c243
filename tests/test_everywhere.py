"""Places that are not plain: odd letters in names, links, roots that are only read, workers that are spawned."""

import multiprocessing
from pathlib import Path

import pytest

import test as test_command
import train
from datasets.catalogue import read_hoss
from tests.chip_files import write_hoss
from tests.commands import call, settings


@pytest.fixture
def spawned():
    """Workers that start as on Windows: nothing is inherited."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def states_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in (folder, *folder.rglob("*"))}


def test_a_training_and_a_test_where_names_are_odd_and_data_is_only_read(tmp_path, spawned):
    held = write_hoss(tmp_path / "held 船 'é'", train_ships=4, views=2)
    for folder in sorted(path for path in (held, *held.rglob("*")) if path.is_dir()):
        folder.chmod(0o555)
    root, output = tmp_path / "link to [data]", tmp_path / "out put 'ß' (1)"
    root.symlink_to(held, target_is_directory=True)
    before = states_of(held)
    words = settings(
        DATASETS__ROOT_DIR=root, OUTPUT_DIR=output, SOLVER__MAX_EPOCHS=2, DATALOADER__NUM_WORKERS=1, TEST__REPORT=True
    )
    try:
        ended = call(train.main, *words)
        assert ended.status == 0, ended.err
        ended = call(test_command.main, *words, "TEST.WEIGHT", output / "best_model_mAP.pth")
        assert ended.status == 0, ended.err
        assert (output / "report.html").is_file()
        assert states_of(held) == before
    finally:
        for folder in sorted(path for path in (held, *held.rglob("*")) if path.is_dir()):
            folder.chmod(0o755)


def test_chips_may_be_links(tmp_path):
    held = write_hoss(tmp_path / "held", train_ships=4)
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "linked" / "HOSS" / folder).mkdir(parents=True)
        for path in (held / "HOSS" / folder).iterdir():
            (tmp_path / "linked" / "HOSS" / folder / path.name).symlink_to(path)
    linked, plain = read_hoss(tmp_path / "linked"), read_hoss(held)
    assert [chip.path.name for chip in (*linked.train, *linked.images)] == [
        chip.path.name for chip in (*plain.train, *plain.images)
    ]
    assert linked.protocols == plain.protocols
