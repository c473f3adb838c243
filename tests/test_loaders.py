"""Records to batches: what a batch holds, that nothing but (seed, epoch, place) decides it, and how a bad chip ends it."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs import load_cfg
from datasets.catalogue import read_hoss
from datasets.chips import size_triple
from datasets.loaders import build_test_loader, build_train_loader
from datasets.records import Batch, Chip, Modality
from datasets.transforms import prepare
from tests.chip_files import optical_pixels, write_hoss
from utils.errors import DataError

GOLDEN = Path(__file__).parent / "golden" / "e2e_hoss_sample.npz"
REAL = os.environ.get("MOS_DATA_ROOT")


def make_cfg(**changes):
    """A small configuration; keys are written with `__` for the dot."""
    values = {
        "INPUT.SIZE_TRAIN": [32, 16],
        "INPUT.SIZE_TEST": [32, 16],
        "DATALOADER.SAMPLER": "softmax_triplet",
        "DATALOADER.NUM_INSTANCE": 4,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 8,
        "TEST.IMS_PER_BATCH": 6,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    return load_cfg(None, [str(part) for item in values.items() for part in item])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return read_hoss(write_hoss(tmp_path_factory.mktemp("data"), train_ships=5, views=3))


def epoch_of(loader, epoch: int) -> list[Batch]:
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def tensors_of(batches: list[Batch]) -> list[torch.Tensor]:
    return [value for batch in batches for value in vars(batch).values() if value is not None]


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(tensors_of(first), tensors_of(second), strict=True)
    return len(first) == len(second) and all(torch.equal(one, other) for one, other in pairs)


def test_a_training_batch_holds_what_its_records_say(data):
    batches = epoch_of(build_train_loader(make_cfg(), data), 0)
    assert batches
    for batch in batches:
        assert (batch.images.shape, batch.images.dtype) == ((8, 3, 32, 16), torch.float32)
        assert (batch.sizes.shape, batch.sizes.dtype) == ((8, 3), torch.float32)
        for values in (batch.modalities, batch.labels, batch.indices):
            assert (values.shape, values.dtype) == ((8,), torch.int64)
        for place, index in enumerate(batch.indices.tolist()):
            record = data.train[index]
            assert batch.labels[place] == data.labels[record.ship]
            assert batch.modalities[place] == record.modality
            width, height = (24, 60) if record.modality is Modality.OPTICAL else (18, 45)
            expected = torch.from_numpy(size_triple(width, height, record.modality)).float()
            torch.testing.assert_close(batch.sizes[place], expected, rtol=0, atol=0)


def test_a_test_loader_gives_each_image_once_in_order_and_learns_no_ship(data):
    batches = list(build_test_loader(make_cfg(), data.images))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(len(data.images)))
    assert torch.cat([batch.modalities for batch in batches]).tolist() == [record.modality for record in data.images]
    assert {batch.labels for batch in batches} == {None}
    assert [len(batch.images) for batch in batches] == [6] * 4 + [len(data.images) - 24], "the last batch is not dropped"


@pytest.mark.parametrize("world_size", [2, 3, 40])
def test_ranks_share_the_test_images_without_overlap(data, world_size):
    shares = [build_test_loader(make_cfg(), data.images, rank=rank, world_size=world_size) for rank in range(world_size)]
    indices = [index for share in shares for batch in share for index in batch.indices.tolist()]
    assert sorted(indices) == list(range(len(data.images)))


def test_the_number_of_workers_changes_nothing(data):
    cfg = make_cfg()
    loaders = [build_train_loader(cfg, data), build_train_loader(make_cfg(DATALOADER__NUM_WORKERS=2), data)]
    for epoch in (0, 1):
        first, second = (epoch_of(loader, epoch) for loader in loaders)
        assert same(first, second)
    tests = [list(build_test_loader(make_cfg(DATALOADER__NUM_WORKERS=workers), data.images)) for workers in (0, 2)]
    assert same(*tests)


def test_two_ranks_see_what_one_process_sees(data):
    whole = epoch_of(build_train_loader(make_cfg(), data), 4)
    shares = [epoch_of(build_train_loader(make_cfg(), data, rank=rank, world_size=2), 4) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(batch.images, torch.cat([first.images, second.images]))
        assert torch.equal(batch.indices, torch.cat([first.indices, second.indices]))
        assert not set(first.labels.tolist()) & set(second.labels.tolist())


def test_seed_and_epoch_change_the_augmentation_and_global_random_states_are_left_alone(data):
    torch.manual_seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    loader = build_train_loader(make_cfg(), data)
    first = epoch_of(loader, 0)
    assert not same(epoch_of(loader, 1), first)
    assert not same(epoch_of(build_train_loader(make_cfg(SOLVER__SEED=5), data), 0), first)
    assert same(epoch_of(loader, 0), first)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def test_an_image_drawn_twice_for_a_batch_is_augmented_twice(tmp_path):
    data = read_hoss(write_hoss(tmp_path, views=1))  # two images of a ship, K = 4
    batch = epoch_of(build_train_loader(make_cfg(), data), 0)[0]
    indices = batch.indices.tolist()
    assert len(set(indices)) < len(indices)
    assert len({float(image.sum()) for image in batch.images}) == len(indices)


def test_plain_shuffling_by_config(data):
    loader = build_train_loader(make_cfg(DATALOADER__SAMPLER="softmax"), data)
    indices = [index for batch in epoch_of(loader, 0) for index in batch.indices.tolist()]
    assert len(indices) == len(set(indices)) == len(data.train) // 8 * 8


def test_the_rendering_follows_the_config(data):
    sar = [record for record in data.images if record.modality is Modality.SAR][:1]
    cfgs = [make_cfg(), make_cfg(INPUT__SAR_DENOISE="max"), make_cfg(INPUT__SAR_LOW_PERCENT=40.0)]
    means = [float(next(iter(build_test_loader(cfg, sar))).images.mean()) for cfg in cfgs]
    assert means[2] < means[0] < means[1], "the more is cut, the darker"


def sample_of(source: Chip, path: Path, size=(24, 60)) -> Chip:
    source = replace(source, size=size)
    return Chip(path, source.ship, Modality.SAR, source.split, size=size, rendered=True, source=source)


def test_generated_pictures_have_modality_sar_and_the_size_of_their_source(data, tmp_path):
    source = next(record for record in data.images if record.modality is Modality.OPTICAL)
    samples = [sample_of(source, tmp_path / f"{source.path.stem}_{number}.png") for number in range(3)]
    for number, sample in enumerate(samples):
        Image.fromarray(optical_pixels(number, height=256, width=256)).save(sample.path)
    batch = next(iter(build_test_loader(make_cfg(), [source, *samples])))
    assert batch.modalities.tolist() == [Modality.OPTICAL, *[Modality.SAR] * 3]
    assert batch.indices.tolist() == [0, 1, 2, 3]
    expected = torch.from_numpy(size_triple(24, 60, Modality.OPTICAL)).float().expand(4, 3)
    torch.testing.assert_close(batch.sizes, expected, rtol=0, atol=0)
    cfg = make_cfg()
    shape = {"size": tuple(cfg.INPUT.SIZE_TEST), "mean": cfg.INPUT.PIXEL_MEAN, "std": cfg.INPUT.PIXEL_STD}
    expected = prepare(optical_pixels(0, height=256, width=256), **shape)
    torch.testing.assert_close(batch.images[1], expected, rtol=0, atol=0)  # read as RGB, not stretched again


def test_a_generated_picture_that_is_measured_has_the_triple_of_its_own_file(data, tmp_path):
    source = next(record for record in data.images if record.modality is Modality.OPTICAL)
    path = tmp_path / f"{source.path.stem}_0.png"
    Image.fromarray(optical_pixels(0, height=256, width=256)).save(path)
    sample = replace(sample_of(source, path), measured=True)
    batch = next(iter(build_test_loader(make_cfg(), [source, sample])))
    expected = [size_triple(24, 60, Modality.OPTICAL), size_triple(256, 256, Modality.SAR)]
    torch.testing.assert_close(batch.sizes, torch.tensor(np.stack(expected)).float(), rtol=0, atol=0)
    assert batch.modalities.tolist() == [Modality.OPTICAL, Modality.SAR]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_chip_ends_loading_with_one_sentence(tmp_path, workers):
    data = read_hoss(write_hoss(tmp_path))
    bad = data.images[7].path
    bad.write_bytes(b"no image at all")
    loader = build_test_loader(make_cfg(DATALOADER__NUM_WORKERS=workers), data.images)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{bad} is no TIFF")
    assert "\n" not in str(caught.value)


def test_a_bad_or_missing_generated_picture_is_named(data, tmp_path):
    source = data.images[0]
    with pytest.raises(DataError, match=r"gone_0\.png does not exist"):
        list(build_test_loader(make_cfg(), [sample_of(source, tmp_path / "gone_0.png")]))


def test_workers_are_capped_at_the_cores_with_a_line(data, caplog):
    caplog.set_level("INFO")
    loader = build_test_loader(make_cfg(DATALOADER__NUM_WORKERS=100000), data.images)
    assert 1 <= loader.num_workers <= os.cpu_count()
    assert f"NUM_WORKERS 100000: {loader.num_workers} used" in caplog.text


def test_memory_is_pinned_for_cuda_only_and_data_sets_can_be_sent_to_spawned_workers(data):
    assert not build_train_loader(make_cfg(), data).pin_memory
    loader = build_train_loader(make_cfg(), data, device_type="cuda")
    assert loader.pin_memory
    copy = pickle.loads(pickle.dumps(loader.dataset))
    draw = next(iter(loader.batch_sampler))[0]
    assert torch.equal(copy[draw]["image"], loader.dataset[draw]["image"])


def test_too_few_ships_for_a_batch_are_refused(data):
    with pytest.raises(DataError, match="5 ships, fewer than the 16"):
        build_train_loader(make_cfg(SOLVER__IMS_PER_BATCH=64), data)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL, reason="MOS_DATA_ROOT names no folder of real chips")
def test_inputs_of_the_real_sample_are_those_of_the_released_program():
    cfg = make_cfg(INPUT__SIZE_TEST=[256, 128])
    batches = list(build_test_loader(cfg, read_hoss(REAL, train=False).images))
    with np.load(GOLDEN, allow_pickle=False) as golden:
        means = torch.cat([batch.images.mean(dim=(2, 3)) for batch in batches])
        np.testing.assert_allclose(means, golden["pixel_mean"], rtol=0, atol=1e-6)
        sizes = torch.cat([batch.sizes for batch in batches])
        np.testing.assert_allclose(sizes, golden["size_triple"], rtol=0, atol=1e-5)
