"""Contrastive pre-training: pairs, batches, the update in parts, and the command."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import train
import train_pair
from datasets.loaders import build_pair_loader
from datasets.pairs import read_optisar_pairs
from datasets.records import Batch
from loss.terms import pair_logits, pair_loss, symmetric_contrastive
from model.build import build_model
from processor.pairs import PairTask
from processor.update import Update
from tests.chip_files import write_hoss
from tests.commands import call, settings, tiny_cfg
from utils.checkpoint import load_state_dict
from utils.device import Precision
from utils.errors import DataError, UsageError

CPU = torch.device("cpu")


def write_pairs(root, count=6, folders=("a", "b")):
    generator = np.random.default_rng(0)
    for folder in folders:
        for number in range(count):
            for modality in ("RGB", "SAR"):
                path = root / "OptiSar_Pair" / folder / f"x_{number:03d}_y_{modality}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = generator.integers(0, 255, (32, 32, 3), np.uint8)
                Image.fromarray(picture if modality == "RGB" else picture[:, :, 0]).save(path)
    return root


def batch_of(pairs: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    count = 2 * pairs
    return Batch(
        images=torch.randn(count, 3, 32, 32, generator=generator),
        sizes=torch.randn(count, 3, generator=generator),
        modalities=torch.arange(count) // pairs,
        labels=torch.arange(count) % pairs,
        indices=torch.arange(count),
    )


def task_of(part: int, drop_path: float = 0.3) -> PairTask:
    torch.manual_seed(0)
    model = build_model(tiny_cfg(MODEL__PAIR=True, MODEL__SSE=False, MODEL__DROP_PATH=drop_path))
    precision = Precision("cpu")
    return PairTask(
        network=model.train(),
        objective=pair_loss,
        update=Update(model, [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)], precision.scaler()),
        schedule=None,
        precision=precision,
        device=CPU,
        part=part,
    )


def test_pairs_of_the_released_layout_are_joined_by_folder_and_id(tmp_path):
    pairs = read_optisar_pairs(write_pairs(tmp_path))
    assert len(pairs) == 12
    assert all(pair.optical.path.parent == pair.sar.path.parent for pair in pairs)
    assert all(pair.optical.path.name.split("_")[1] == pair.sar.path.name.split("_")[1] for pair in pairs)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x_000_y_SAR.png", "not one optical and one SAR picture for a/000"), ("nothing.png", "not named")],
)
def test_uneven_and_odd_names_are_listed(tmp_path, name, message):
    root = write_pairs(tmp_path, count=2, folders=("a",))
    path = root / "OptiSar_Pair" / "a" / name
    if path.exists():
        path.unlink()
    else:
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(DataError, match=message):
        read_optisar_pairs(root)


def names_of(pairs) -> set[tuple[str, str]]:
    return {tuple(f"{chip.path.parent.name}/{chip.path.stem}" for chip in (pair.optical, pair.sar)) for pair in pairs}


def test_pairs_are_read_as_the_released_reader_does_by_id_over_all_folders(tmp_path, caplog):
    """Two optical and three SAR pictures of id 000, in folders for each sensor: six pairs; one each of 001."""
    for folder, number, rest, modality in (
        ("o", "000", "p", "RGB"), ("o", "000", "q", "RGB"), ("o", "001", "p", "RGB"),
        ("s", "000", "p", "SAR"), ("s", "000", "q", "SAR"), ("t", "000", "p", "SAR"), ("t", "001", "p", "SAR"),
    ):  # fmt: skip
        path = tmp_path / "OptiSar_Pair" / folder / f"x_{number}_{rest}_{modality}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if modality == "RGB" else "L", (16, 16)).save(path)
    caplog.set_level("INFO")
    pairs = read_optisar_pairs(tmp_path)
    expected = {(f"o/x_000_{a}_RGB", b) for a in "pq" for b in ("s/x_000_p_SAR", "s/x_000_q_SAR", "t/x_000_p_SAR")}
    assert names_of(pairs) == expected | {("o/x_001_p_RGB", "t/x_001_p_SAR")}
    assert [pair.place for pair in pairs] == ["000"] * 6 + ["001"]
    assert "7 pairs, joined by id over all folders, many to many, as released" in caplog.text
    with pytest.raises(DataError, match=r"not one optical and one SAR picture for o/000, .* or set DATASETS.PAIR_JOIN id"):
        read_optisar_pairs(tmp_path, join="folder")


def test_several_views_of_an_id_in_one_folder_are_all_joined(tmp_path):
    root = write_pairs(tmp_path, count=2, folders=("a",))
    Image.new("RGB", (32, 32)).save(root / "OptiSar_Pair" / "a" / "x_000_z_RGB.png")
    assert names_of(read_optisar_pairs(root)) == {
        ("a/x_000_y_RGB", "a/x_000_y_SAR"), ("a/x_000_z_RGB", "a/x_000_y_SAR"), ("a/x_001_y_RGB", "a/x_001_y_SAR")
    }  # fmt: skip


def test_a_missing_file_never_pairs_scenes_of_two_folders_unasked(tmp_path):
    root = write_pairs(tmp_path, count=2)
    (root / "OptiSar_Pair" / "a" / "x_000_y_SAR.png").unlink()
    with pytest.raises(DataError, match=r"picture for a/000 \(folder/id\).*set DATASETS.PAIR_JOIN id"):
        read_optisar_pairs(root)
    assert len(read_optisar_pairs(root, join="id")) == 2 * 1 + 2 * 2  # as the released reader: 2 x 1 of 000, 2 x 2 of 001


def test_the_command_joins_as_it_is_told(tmp_path):
    root = write_pairs(tmp_path, count=3)
    assert len(train_pair.build_pairs(tiny_cfg(DATASETS__ROOT_DIR=root))) == 6
    assert len(train_pair.build_pairs(tiny_cfg(DATASETS__ROOT_DIR=root, DATASETS__PAIR_JOIN="id"))) == 12


def test_a_batch_of_half_pairs_is_a_wrong_call(tmp_path):
    pairs = read_optisar_pairs(write_pairs(tmp_path))
    with pytest.raises(UsageError, match="IMS_PER_BATCH 7 is no whole number of pairs"):
        build_pair_loader(tiny_cfg(SOLVER__IMS_PER_BATCH=7, DATALOADER__NUM_INSTANCE=1), pairs)
    with pytest.raises(UsageError, match="whole number of pairs for each of 2"):
        build_pair_loader(tiny_cfg(SOLVER__IMS_PER_BATCH=6, DATALOADER__NUM_INSTANCE=1), pairs, world_size=2)


def test_sar_pictures_of_8_bits_are_read_as_they_are_and_others_are_rendered(tmp_path):
    pairs = read_optisar_pairs(write_pairs(tmp_path, count=2, folders=("a",)))
    assert [pair.sar.rendered for pair in pairs] == [True, True]
    Image.fromarray(np.ones((32, 32), np.float32)).save(pairs[0].sar.path.with_suffix(".tif"))
    pairs[0].sar.path.unlink()
    pairs = read_optisar_pairs(tmp_path)
    assert [pair.sar.rendered for pair in pairs] == [False, True]
    assert not any(pair.optical.rendered for pair in pairs)


def test_the_term_is_small_only_for_the_right_pairs():
    features = nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
    scale = torch.tensor(4.0)
    right = symmetric_contrastive(pair_logits(features, features, scale))
    wrong = symmetric_contrastive(pair_logits(features.roll(1, 0), features, scale))
    assert right < 0.5 < wrong


@pytest.mark.parametrize("part", [2, 3, 8])
def test_an_update_in_parts_is_the_update_of_the_whole_batch(part):
    # Without dropped paths; with them the parts draw other ones than the whole batch would.
    whole, parts = task_of(0, drop_path=0.0), task_of(part, drop_path=0.0)
    batch = batch_of(4)
    torch.testing.assert_close(whole.step(batch), parts.step(batch))
    for (name, ours), theirs in zip(parts.network.named_parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5, msg=name)
    assert not torch.equal(whole.network.logit_scale, task_of(0).network.logit_scale)


def test_both_passes_of_a_part_drop_the_same_paths():
    task, batch = task_of(2), batch_of(4)
    outputs = []
    features = task._features
    task._features = lambda part: outputs.append(features(part)) or outputs[-1]
    task.step(batch)
    assert len(outputs) == 8
    for first, second in zip(outputs[:4], outputs[4:], strict=True):
        torch.testing.assert_close(first, second)


def test_the_temperature_stays_bounded():
    task = task_of(0)
    task.network.logit_scale.data.fill_(50.0)
    task.update.optimizers[0].param_groups[0]["lr"] = 0.0
    task.step(batch_of(2))
    assert task.network.logit_scale.item() == pytest.approx(task.largest_logit_scale)


def test_the_command_learns_pairs_and_train_starts_from_its_output(tmp_path):
    root, out, reid = write_pairs(tmp_path / "pairs", count=4), tmp_path / "out", tmp_path / "reid"
    kind = {"MODEL__PAIR": True, "MODEL__SSE": False, "SOLVER__IMS_PER_PASS": 4, "SOLVER__MAX_EPOCHS": 2}
    ended = call(train_pair.main, *settings(**kind, DATASETS__ROOT_DIR=root, OUTPUT_DIR=out))
    assert ended.status == 0, ended.err
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"contrastive", "logit_scale", "accuracy", "lr"} <= lines[0].keys()
    weights = load_state_dict(out / "transformer_2.pth")
    assert {"base.cls_token", "logit_scale"} <= weights.keys()

    start = {"MODEL__PRETRAIN_CHOICE": "imagenet", "MODEL__PRETRAIN_PATH": out / "transformer_2.pth", "SOLVER__BASE_LR": 0.0}
    hoss = write_hoss(tmp_path / "hoss")
    ended = call(train.main, *settings(**start, SOLVER__MAX_EPOCHS=1, DATASETS__ROOT_DIR=hoss, OUTPUT_DIR=reid))
    assert ended.status == 0, ended.err
    trained = load_state_dict(reid / "transformer_1.pth")
    assert torch.equal(trained["base.patch_embed_SAR.proj.weight"], weights["base.patch_embed_SAR.proj.weight"])


def test_a_config_that_is_not_for_pairs_is_a_wrong_call(tmp_path):
    ended = call(train_pair.main, "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu")
    assert ended.status == 2
    assert "MODEL.PAIR" in ended.err


class Pixels(nn.Module):
    """Stands for a network: a picture's feature is its first row."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images, modalities, sizes):
        return SimpleNamespace(feature=images[:, 0, 0] * self.logit_scale.exp().detach())


def test_a_step_tells_the_loss_the_share_of_found_pairs_and_the_scale():
    network = Pixels()
    update = Update(network, [torch.optim.SGD([network.logit_scale], lr=0.0)], Precision("cpu").scaler())
    task = PairTask(network, pair_loss, update, None, Precision("cpu"), CPU)
    images = torch.eye(4)[:, None, None]  # of four places, each unlike the others
    pictures = torch.cat([images, images[[0, 1, 3, 2]]])  # the SAR pictures of the last two are swapped
    batch = Batch(pictures, torch.zeros(8, 3), torch.arange(8) // 4, None, torch.arange(8))
    told = dict(zip(task.numbers, task.step(batch).tolist(), strict=True))
    assert told["accuracy"] == 0.5
    assert told["logit_scale"] == pytest.approx(math.e)
    right, wrong = (math.log(math.e**math.e + 3) - hit * math.e for hit in (1, 0))
    assert told["loss"] == told["contrastive"] == pytest.approx((right + wrong) / 2, rel=1e-5)
