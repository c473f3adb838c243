"""tools.check_downloads: right, damaged and other downloads are told apart."""

import pytest
import torch

from model.build import build_model
from tests.chip_files import write_chip, write_hoss
from tests.commands import call, tiny_cfg
from tools import check_downloads as command
from utils.checkpoint import save


@pytest.fixture
def root(tmp_path):
    return write_hoss(tmp_path / "data")


def expect(monkeypatch, root):
    monkeypatch.setattr(command, "HOSS", command.facts_of_hoss(root))


def test_the_right_data_set_is_right(root, monkeypatch):
    expect(monkeypatch, root)
    ended = call(command.main, "--hoss", root)
    assert (ended.status, ended.out.startswith("HOSS ReID: right: images ")) == (0, True)


def test_another_data_set_is_told_by_its_counts(root):
    ended = call(command.main, "--hoss", root)
    assert ended.status == 1
    assert "HOSS ReID: another one: images " in ended.out and "instead of 1832" in ended.out
    assert ended.sentence == "HOSS ReID should not be used as it is; see above"


def test_a_damaged_chip_is_told_by_its_name(root, monkeypatch):
    expect(monkeypatch, root)
    path = sorted((root / "HOSS" / "query").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-40])
    ended = call(command.main, "--hoss", root)
    assert ended.status == 1
    assert "HOSS ReID: damaged or missing: 1 of " in ended.out and path.name in ended.out
    assert "damaged or missing" in call(command.main, "--hoss", root / "nothing").out


def test_weights_are_told_by_their_tensors(tmp_path, monkeypatch):
    save(tmp_path / "tiny.pth", build_model(tiny_cfg(), 5).state_dict())
    ended = call(command.main, "--mos", tmp_path / "tiny.pth", "--transoss", tmp_path / "tiny.pth")
    assert ended.status == 1
    assert "the trained model: another one: width 192 instead of 768, identities 5 instead of 361" in ended.out
    assert "TransOSS's backbone: another one: width 192 instead of 768, " in ended.out and "SHA-256" in ended.out
    monkeypatch.setattr(command, "MODEL", command.facts_of_weights(tmp_path / "tiny.pth"))
    assert call(command.main, "--mos", tmp_path / "tiny.pth").status == 0


def test_damaged_and_other_files_are_told(tmp_path):
    save(tmp_path / "whole.pth", {"weight": torch.zeros(40, 40)})
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "page.pth").write_text("<html>Sign in to go on</html>")
    for name in ("cut.pth", "page.pth", "none.pth"):
        ended = call(command.main, "--mos", tmp_path / name)
        assert (ended.status, ended.out.startswith("the trained model: damaged or missing: ")) == (1, True), name
        assert name in ended.out
    assert "another one: network none that is known" in call(command.main, "--mos", tmp_path / "whole.pth").out


def test_pairs_are_counted(tmp_path):
    for folder in ("opt_256", "sar_256"):
        (tmp_path / "qxs" / folder).mkdir(parents=True)
        for number in (1, 2):
            write_chip(tmp_path / "qxs" / folder / f"{number}.png", height=8, width=8)
    ended = call(command.main, "--qxs", tmp_path / "qxs")
    assert ended.status == 1
    assert "QXS-SAROPT: another one: pairs 2 instead of 20000, width 8 instead of 256" in ended.out


def test_nothing_named_is_a_wrong_call():
    assert call(command.main).status == 2
