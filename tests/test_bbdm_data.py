"""Which pairs there are, how they are read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.data import (
    build_bridge_loader,
    build_bridge_pairs,
    build_dataset,
    build_validation_loader,
    cut_or_resize,
    layout_of,
    to_picture,
    to_tensor,
)
from configs import load_cfg
from datasets.catalogue import read_hoss
from datasets.chips import read_chip
from datasets.pairs import pair_ship_views, read_registered_pairs, split_by_place
from datasets.sar import render_percentile
from datasets.validation import build_validation_data
from utils.device import Precision
from utils.errors import DataError, UsageError


def write(path, *, size=(8, 6), value=100, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, value // 2, 0)).save(path)


def write_pairs(root, names, folders=("opt_256_oc_0.2", "sar_256_oc_0.2"), **more):
    for name in names:
        write(root / folders[0] / name, **more)
        write(root / folders[1] / name, **{**more, "mode": "L"})
    return root


@pytest.mark.parametrize("folders", [("opt_256_oc_0.2", "sar_256_oc_0.2"), ("opt", "sar"), ("A", "B"), ("Optical", "SAR")])
def test_folders_of_both_styles_are_paired_by_name(tmp_path, folders):
    pairs = read_registered_pairs(write_pairs(tmp_path, ["b_1.png", "a_2.png"], folders)).train
    assert [(pair.optical.path.name, pair.sar.path.name, pair.place) for pair in pairs] == [
        ("a_2.png", "a_2.png", "a"),
        ("b_1.png", "b_1.png", "b"),
    ]
    assert {pair.optical.path.parent.name for pair in pairs} == {folders[0]}


def test_train_and_val_folders_are_kept_apart(tmp_path):
    write_pairs(tmp_path / "train", ["1.png", "2.png"], ("A", "B"))
    write_pairs(tmp_path / "val", ["3.png"], ("A", "B"))
    lists = read_registered_pairs(tmp_path)
    assert ([pair.place for pair in lists.train], [pair.place for pair in lists.validation]) == (["1", "2"], ["3"])


def test_every_third_place_is_held_out_whole(tmp_path):
    names = [f"{place:03d}_{tile}.png" for place in range(7) for tile in range(2)]
    lists = read_registered_pairs(write_pairs(tmp_path, names), hold_out_every=3)
    assert sorted({pair.place for pair in lists.validation}) == ["002", "005"]
    assert len(lists.validation) == 4
    assert not {pair.place for pair in lists.train} & {"002", "005"}
    with pytest.raises(DataError, match=r"BBDM.HOLD_OUT_EVERY 1 holds out all"):
        split_by_place(lists.train, 1)


def test_unpaired_names_are_listed(tmp_path):
    write_pairs(tmp_path, ["1.png", "2.png"])
    write(tmp_path / "opt_256_oc_0.2" / "3.png")
    with pytest.raises(DataError, match=r"no SAR picture of the same name for 3"):
        read_registered_pairs(tmp_path)
    (tmp_path / "opt_256_oc_0.2" / "3.png").unlink()
    (tmp_path / "opt_256_oc_0.2" / "1.png").unlink()
    with pytest.raises(DataError, match=r"no optical picture of the same name for 1"):
        read_registered_pairs(tmp_path)


def test_pairs_of_different_size_are_listed(tmp_path):
    write_pairs(tmp_path, ["1.png", "2.png"])
    write(tmp_path / "sar_256_oc_0.2" / "2.png", size=(8, 7), mode="L")
    with pytest.raises(DataError, match=r"different size for 2"):
        read_registered_pairs(tmp_path)


def test_missing_doubled_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"is no folder"):
        read_registered_pairs(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no folder of OPTICAL pictures; it takes one, named opt\.\.\. or rgb\.\.\. or A"):
        read_registered_pairs(tmp_path)
    (tmp_path / "opt").mkdir()
    (tmp_path / "sar").mkdir()
    with pytest.raises(DataError, match=r"holds no pair"):
        read_registered_pairs(tmp_path)
    (tmp_path / "sar_old").mkdir()
    with pytest.raises(DataError, match=r"2 folders \(sar, sar_old\)"):
        read_registered_pairs(tmp_path)


def write_hoss(root, names, sar="F"):
    for name in names:
        mode = sar if "SAR" in name else "RGB"
        write(root / "HOSS" / "bounding_box_train" / name, mode=mode, value=90 if mode == "RGB" else 3)
    return root


def test_every_view_of_a_ship_by_one_sensor_meets_every_view_by_the_other(tmp_path, caplog):
    names = ["0001_a_RGB.tif", "0001_b_RGB.tif", "0001_a_SAR.tif", "0001_b_SAR.tif", "0002_a_RGB.tif", "0003_a_SAR.tif"]
    caplog.set_level("INFO")
    pairs = pair_ship_views(read_hoss(write_hoss(tmp_path, names), test=False).train).train
    assert len(pairs) == 4
    assert {pair.place for pair in pairs} == {"1"}
    assert "2 of 3 ships were seen by one sensor only and make no pair: 2, 3" in caplog.text


def test_ships_that_one_sensor_saw_make_no_list(tmp_path):
    with pytest.raises(DataError, match="no training ship has both an optical and a SAR chip"):
        pair_ship_views(read_hoss(write_hoss(tmp_path, ["0001_a_RGB.tif", "0002_a_SAR.tif"]), test=False).train)


def test_ships_that_validate_stay_unseen(tmp_path):
    names = [f"{pid:04d}_{view}_{kind}.tif" for pid in range(1, 11) for view in "ab" for kind in ("RGB", "SAR")]
    root = write_hoss(tmp_path, names)
    settings = ["BBDM.PAIRS", "hoss", "DATASETS.ROOT_DIR", str(root), "DATASETS.VAL_FRACTION", "0.3"]
    cfg = load_cfg(None, settings)
    seen = {int(pair.place) for pair in build_bridge_pairs(cfg).train}
    assert seen == set(build_validation_data(cfg).labels)
    assert 0 < len(seen) < 10


def test_sar_of_ships_is_rendered_and_8_bit_sar_of_scenes_is_not(tmp_path):
    values = np.linspace(0, 11, 48, dtype=np.float32).reshape(6, 8)
    write_pairs(tmp_path / "scenes", ["1.png", "2.png"])
    Image.fromarray(values).save(tmp_path / "scenes" / "sar_256_oc_0.2" / "1.tif")
    (tmp_path / "scenes" / "sar_256_oc_0.2" / "1.png").unlink()
    Image.fromarray((20 * values).astype(np.uint8)).save(tmp_path / "scenes" / "sar_256_oc_0.2" / "2.png")
    floats, bytes_ = (pair.sar for pair in read_registered_pairs(tmp_path / "scenes").train)
    assert (floats.rendered, bytes_.rendered) == (False, True)
    np.testing.assert_array_equal(read_chip(floats, render_percentile), render_percentile(values))
    np.testing.assert_array_equal(read_chip(bytes_, render_percentile)[..., 0], (20 * values).astype(np.uint8))

    write_hoss(tmp_path, ["0001_a_RGB.tif", "0001_a_SAR.png"], sar="L")
    (ship,) = pair_ship_views(read_hoss(tmp_path, test=False).train).train
    grey = np.full((6, 8), 3, np.uint8)
    grey[0, 0] = 9
    Image.fromarray(grey).save(ship.sar.path)
    np.testing.assert_array_equal(read_chip(ship.sar, render_percentile), render_percentile(grey.astype(np.float32)))


def test_pictures_of_one_key_are_cut_and_flipped_alike():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    seen = []
    for key in range(12):
        first, second = (
            cut_or_resize(pixels, np.random.default_rng((key,)), size=(16, 8), crop=True, flip=True) for _ in range(2)
        )
        assert first.shape == (3, 16, 8)
        assert torch.equal(first, second)
        seen.append(to_picture(first))
    assert len({picture.tobytes() for picture in seen}) > 8
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (16, 8, 3)).reshape(-1, 16, 8, 3)
    cuts = {cut.tobytes() for cut in windows}
    flipped = {cut[:, ::-1].tobytes() for cut in windows}
    assert all(picture.tobytes() in cuts | flipped for picture in seen)
    assert any(picture.tobytes() in cuts for picture in seen) and any(picture.tobytes() in flipped for picture in seen)


def test_both_pictures_of_a_pair_are_cut_and_flipped_alike(cfg):
    folder = Path(cfg.BBDM.PAIRS_DIR)
    for number in range(9):  # the same picture by both sensors
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3)).astype(np.uint8)
        for name in ("opt_256_oc_0.2", "sar_256_oc_0.2"):
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    cfg = load_cfg(None, [*cfg_words(folder), "BBDM.CROP", "True", "BBDM.FLIP", "True"])
    loader = build_bridge_loader(cfg, read_registered_pairs(folder).train, device_type="cpu")
    seen = set()
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            optical, sar = batch.images.chunk(2)
            assert torch.equal(optical, sar)
            first, second = batch.indices.chunk(2)
            assert torch.equal(first + 1, second)
            seen |= {picture.numpy().tobytes() for picture in optical}
    assert len(seen) == 3 * 8, "another cut each epoch"


def test_pictures_survive_the_way_to_tensors_and_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    tensor = to_tensor(pixels)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_picture(tensor), pixels)
    assert to_picture(torch.tensor([[[[-7.0, 7.0]]]]).expand(1, 3, 1, 2)).tolist() == [[[[0, 0, 0], [255, 255, 255]]]]


def cfg_words(folder):
    settings = ["BBDM.IMAGE_SIZE", "[8, 8]", "SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0"]
    return ["BBDM.PAIRS_DIR", str(folder), *settings]


@pytest.fixture
def cfg(tmp_path):
    write_pairs(tmp_path / "pairs", [f"{i}.png" for i in range(9)])
    return load_cfg(None, cfg_words(tmp_path / "pairs"))


def test_two_processes_share_the_pairs_of_one(cfg):
    pairs = read_registered_pairs(cfg.BBDM.PAIRS_DIR).train

    def epoch(rank, world_size):
        loader = build_bridge_loader(cfg, pairs, device_type="cpu", rank=rank, world_size=world_size)
        loader.batch_sampler.set_epoch(3)
        return [batch.indices.tolist() for batch in loader]

    alone, first, second = epoch(0, 1), epoch(0, 2), epoch(1, 2)
    assert len(alone) == 2
    for whole, *shares in zip(alone, first, second, strict=True):
        optical = [index for share in shares for index in share[: len(share) // 2]]
        assert whole == optical + [index + 1 for index in optical]


def test_validation_drops_no_pair(cfg):
    pairs = read_registered_pairs(cfg.BBDM.PAIRS_DIR).train
    seen = [
        index
        for rank in range(2)
        for batch in build_validation_loader(cfg, pairs, device_type="cpu", rank=rank, world_size=2)
        for index in batch.indices.tolist()
    ]
    assert sorted(seen) == list(range(2 * 9))


def test_a_damaged_picture_is_named(cfg):
    pairs = read_registered_pairs(cfg.BBDM.PAIRS_DIR).train
    content = pairs[5].sar.path.read_bytes()
    pairs[5].sar.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"5\.png"):
        list(build_validation_loader(cfg, pairs, device_type="cpu"))


def test_pictures_too_small_to_cut_are_named(cfg):
    pairs = read_registered_pairs(cfg.BBDM.PAIRS_DIR).train
    large = [*cfg_words(cfg.BBDM.PAIRS_DIR), "BBDM.IMAGE_SIZE", "[16, 16]"]
    with pytest.raises(DataError, match=r"0\.png is 6 x 8, too small to cut BBDM\.IMAGE_SIZE \[16, 16\]; set BBDM\.CROP False"):
        list(build_validation_loader(load_cfg(None, [*large, "BBDM.CROP", "True"]), pairs, device_type="cpu"))
    loader = build_validation_loader(load_cfg(None, [*large, "BBDM.CROP", "False"]), pairs, device_type="cpu")
    assert [len(batch.images) for batch in loader] == [8, 8, 2]


def test_pairs_of_ships_need_the_training_chips_alone_and_hold_out_by_their_key(tmp_path):
    root = write_hoss(tmp_path, [f"{pid:04d}_a_{kind}.tif" for pid in range(1, 7) for kind in ("RGB", "SAR")])
    words = ["BBDM.PAIRS", "hoss", "DATASETS.ROOT_DIR", str(root), "BBDM.HOLD_OUT_EVERY"]
    lists = build_bridge_pairs(load_cfg(None, [*words, "3"]))
    assert [pair.place for pair in lists.validation] == ["3", "6"]
    assert [pair.place for pair in lists.train] == ["1", "2", "4", "5"]
    assert [pair.place for pair in build_bridge_pairs(load_cfg(None, [*words, "2"])).validation] == ["2", "4", "6"]
    with pytest.raises(UsageError, match="HOLD_OUT_EVERY is 1"):
        build_bridge_pairs(load_cfg(None, [*words, "1"]))


def test_registered_pairs_hold_out_by_their_key(cfg):
    words = [*cfg_words(cfg.BBDM.PAIRS_DIR), "BBDM.HOLD_OUT_EVERY", "4"]
    assert [pair.place for pair in build_bridge_pairs(load_cfg(None, words)).validation] == ["3", "7"]
    with pytest.raises(UsageError, match="PAIRS_DIR is empty"):
        build_bridge_pairs(load_cfg(None, []))


def test_validation_has_the_same_batches_however_many_processes_share_them(cfg):
    pairs = read_registered_pairs(cfg.BBDM.PAIRS_DIR).train
    for world_size, rank, sizes in ((1, 0, [4, 4, 1]), (2, 0, [4, 1]), (2, 1, [4]), (9, 2, [1]), (9, 3, [])):
        loader = build_validation_loader(cfg, pairs, device_type="cpu", world_size=world_size, rank=rank)
        assert [len(batch.images) // 2 for batch in loader] == sizes


def test_training_mirrors_where_the_key_says_so_and_validation_never(tmp_path):
    folder = write_pairs(tmp_path, ["0.png"])
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    for name in ("opt_256_oc_0.2", "sar_256_oc_0.2"):
        Image.fromarray(pixels).save(folder / name / "0.png")
    pairs = read_registered_pairs(folder).train
    plain, mirrored = to_tensor(pixels), to_tensor(pixels[:, ::-1])

    def seen(load, flip):
        cfg = load_cfg(None, [*cfg_words(folder), "SOLVER.IMS_PER_BATCH", "1", "BBDM.FLIP", flip])
        loader = load(cfg, pairs, device_type="cpu")
        found = set()
        for epoch in range(12):
            if load is build_bridge_loader:
                loader.batch_sampler.set_epoch(epoch)
            for batch in loader:
                found |= {"plain" if torch.equal(image, plain) else "mirrored" for image in batch.images}
                assert all(torch.equal(image, plain) or torch.equal(image, mirrored) for image in batch.images)
        return found

    assert seen(build_bridge_loader, "True") == {"plain", "mirrored"}
    assert seen(build_bridge_loader, "False") == seen(build_validation_loader, "True") == {"plain"}


def test_the_order_of_training_pairs_follows_from_the_seed(cfg):
    pairs = read_registered_pairs(cfg.BBDM.PAIRS_DIR).train

    def order(seed):
        loader = build_bridge_loader(
            load_cfg(None, [*cfg_words(cfg.BBDM.PAIRS_DIR), "SOLVER.SEED", str(seed)]), pairs, device_type="cpu"
        )
        loader.batch_sampler.set_epoch(1)
        return [batch.indices.tolist() for batch in loader]

    assert order(1) == order(1) != order(2)


def test_only_registered_pairs_are_cut(cfg, tmp_path):
    """Views of a ship do not show the same ground: cut at one place, they would show different parts of it."""
    root = write_hoss(tmp_path, ["0001_a_RGB.tif", "0001_a_SAR.tif"])
    ships = pair_ship_views(read_hoss(root, test=False).train).train
    cfg = load_cfg(None, [*cfg_words(cfg.BBDM.PAIRS_DIR), "BBDM.CROP", "True", "BBDM.IMAGE_SIZE", "[4, 6]"])
    scenes = read_registered_pairs(cfg.BBDM.PAIRS_DIR).train
    settings = [build_dataset(cfg, pairs, flip=False).transform.keywords for pairs in (ships, scenes)]
    assert settings == [{"size": (4, 6), "crop": crop, "flip": False} for crop in (False, True)]


def test_a_cut_of_the_whole_picture_is_the_picture():
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    cut = cut_or_resize(pixels, np.random.default_rng(0), size=(5, 7), crop=True, flip=False)
    assert torch.equal(cut, to_tensor(pixels))
    places = {
        cut_or_resize(pixels, np.random.default_rng(key), size=(4, 6), crop=True, flip=False).numpy().tobytes()
        for key in range(60)
    }
    expected = {to_tensor(pixels[top : top + 4, left : left + 6]).numpy().tobytes() for top in (0, 1) for left in (0, 1)}
    assert places == expected, "the last place too"


def test_half_of_the_pictures_are_mirrored():
    pixels = np.random.default_rng(0).integers(0, 255, (4, 4, 3)).astype(np.uint8)
    pictures = [cut_or_resize(pixels, np.random.default_rng(key), size=(4, 4), crop=False, flip=True) for key in range(400)]
    plain = sum(torch.equal(picture, to_tensor(pixels)) for picture in pictures)
    assert 160 < plain < 240


def test_pictures_are_laid_out_as_their_precision_likes():
    assert layout_of(Precision("cuda", torch.bfloat16)) is torch.channels_last
    assert layout_of(Precision("cuda")) is torch.contiguous_format
    assert layout_of(Precision("cpu", torch.bfloat16)) is torch.contiguous_format
