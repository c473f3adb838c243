"""The common space: what each map recovers of clouds whose answer is known, and its way into a test."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

import test as command
from datasets.catalogue import read_hoss
from model.build import build_model
from processor import common_space
from processor.common_space import fit_chips, fit_space, space_sentence
from processor.extraction import build_extractor
from processor.fusion import find_samples, fuse_images
from processor.ranking.evaluation import Ranking, rank_protocol, score_protocol
from tests.chip_files import write_hoss
from tests.commands import call, settings, tiny_cfg
from tests.test_test import write_samples
from tools import rank
from utils.checkpoint import save
from utils.errors import DataError

WIDTH, SHIPS, VIEWS = 24, 300, 2
OPTICAL, SAR = 0, 1


class World:
    """Ships of six numbers each; each sensor shows them by a map of its own, far from the origin, with noise."""

    def __init__(self, seed=0, noise=0.3):
        self.draws = np.random.default_rng(seed)
        self.maps = [self.draws.normal(size=(6, WIDTH)) for _ in range(2)]
        self.offsets = [30 * self.draws.normal(size=WIDTH) for _ in range(2)]
        self.noise = noise

    def see(self, first, count, sensors=(OPTICAL, SAR)):
        """Features, modalities and ships of VIEWS chips of each ship by each sensor."""
        latent = self.draws.normal(size=(count, 6))
        rows, modalities, ships = [], [], []
        for sensor in sensors:
            for _ in range(VIEWS):
                noise = self.noise * self.draws.normal(size=(count, WIDTH))
                rows.append(latent @ self.maps[sensor] + self.offsets[sensor] + noise)
                modalities += [sensor] * count
                ships += range(first, first + count)
        return torch.tensor(np.concatenate(rows), dtype=torch.float32), modalities, ships


def found_at_first(features, modalities, ships):
    """Share of optical images whose nearest SAR image is of their ship."""
    modalities, ships = torch.tensor(modalities), torch.tensor(ships)
    optical, sar = (modalities == sensor for sensor in (OPTICAL, SAR))
    nearest = (features[optical] @ features[sar].T).argmax(1)
    return float((ships[sar][nearest] == ships[optical]).float().mean())


@pytest.fixture(scope="module")
def world():
    made = World()
    return made.see(0, SHIPS), made.see(1000, 100)


def fitted(kind, training, shrinkage=0.01, dimensions=6):
    return fit_space(kind, *training, shrinkage=shrinkage, dimensions=dimensions)


@pytest.mark.parametrize(("kind", "least"), [("cca", 0.9), ("ridge", 0.9), ("lda", 0.9)])
def test_a_linear_relation_that_cosines_miss_is_found(world, kind, least):
    training, (features, modalities, ships) = world
    assert found_at_first(functional.normalize(features), modalities, ships) < 0.1
    mapped = fitted(kind, training).map_images(features, modalities)
    assert found_at_first(mapped, modalities, ships) > least
    assert mapped.dtype == torch.float32
    assert torch.allclose(mapped.norm(dim=1), torch.ones(len(mapped)))


def test_taking_off_the_means_is_not_enough_and_nothing_works_without_it(world):
    training, (features, modalities, ships) = world
    assert found_at_first(fitted("centre", training).map_images(features, modalities), modalities, ships) < 0.1
    space = fitted("cca", training)
    off_centre = common_space.CommonSpace("cca", 0.01, 6, SHIPS, torch.zeros_like(space.means), space.maps)
    assert found_at_first(off_centre.map_images(features, modalities), modalities, ships) < 0.1


@pytest.mark.parametrize("kind", ["cca", "ridge", "lda"])
def test_pairs_of_wrong_ships_teach_nothing(world, kind):
    (features, modalities, ships), test = world
    wrong = [ship if sensor == OPTICAL else (ship + 1) % SHIPS for ship, sensor in zip(ships, modalities)]
    mapped = fitted(kind, (features, modalities, wrong)).map_images(test[0], test[1])
    assert found_at_first(mapped, *test[1:]) < 0.1


def test_ridge_is_the_closed_form(world):
    features, modalities, _ = world[0]
    unit = functional.normalize(features.double()).numpy()
    optical, sar = (unit[np.array(modalities) == sensor] for sensor in (OPTICAL, SAR))
    x, y = optical - optical.mean(0), sar - sar.mean(0)
    wanted = np.concatenate([y.reshape(VIEWS, SHIPS, WIDTH).mean(0)] * VIEWS)  # chips come view by view, ships in order
    penalty = 0.2 * np.trace(x.T @ x) / WIDTH * np.eye(WIDTH)
    slope = np.linalg.inv(x.T @ x + penalty) @ x.T @ wanted
    space = fitted("ridge", world[0], shrinkage=0.2, dimensions=0)
    np.testing.assert_allclose(space.maps[OPTICAL].numpy(), slope, atol=1e-10)
    np.testing.assert_array_equal(space.maps[SAR].numpy(), np.eye(WIDTH))
    low = fitted("ridge", world[0], shrinkage=0.2, dimensions=3).maps[OPTICAL].numpy()
    assert np.linalg.matrix_rank(low, tol=1e-8) == 3
    left, values, right = np.linalg.svd(x @ slope, full_matrices=False)
    np.testing.assert_allclose(x @ low, left[:, :3] * values[:3] @ right[:3], atol=1e-8)


def test_directions_of_cca_are_uncorrelated_and_weighted_by_their_correlation(world):
    features, modalities, _ = world[0]
    space = fitted("cca", world[0], shrinkage=1e-6, dimensions=6)
    unit = functional.normalize(features.double())
    sides = [unit[torch.tensor(modalities) == sensor] - space.means[sensor] for sensor in (OPTICAL, SAR)]
    spreads = [torch.cov((side @ space.maps[sensor]).T, correction=0) for sensor, side in enumerate(sides)]
    weights = spreads[0].diagonal().sqrt()
    assert torch.allclose(spreads[0], torch.diag(weights**2), atol=1e-3)
    assert torch.allclose(spreads[0], spreads[1], atol=1e-3)
    assert (weights[:-1] >= weights[1:]).all() and 0.5 < weights[0] <= 1


def test_lda_makes_views_of_a_ship_alike_in_every_direction(world):
    features, modalities, _ = world[0]
    space = fitted("lda", world[0], shrinkage=1e-6, dimensions=4)
    assert torch.equal(space.maps[OPTICAL], space.maps[SAR]) and space.maps.shape == (2, WIDTH, 4)
    centred = functional.normalize(features.double()) - space.means[torch.tensor(modalities)]
    mapped = (centred @ space.maps[0]).reshape(2 * VIEWS, SHIPS, 4)
    within = (mapped - mapped.mean(0)).reshape(-1, 4)
    assert torch.allclose(within.T @ within / len(within), torch.eye(4, dtype=torch.float64), atol=1e-3)
    between = torch.cov(mapped.mean(0).T, correction=0)
    assert torch.allclose(between, torch.diag(between.diagonal()), atol=1e-3)
    assert (between.diagonal()[:-1] >= between.diagonal()[1:]).all()


@pytest.mark.parametrize(("kind", "width"), [("cca", 24), ("ridge", 24), ("lda", 4), ("centre", 24)])
def test_no_number_of_dimensions_means_all_there_are(kind, width):
    features, modalities, ships = World().see(0, 5)
    assert fit_space(kind, features, modalities, ships, shrinkage=0.1, dimensions=0).maps.shape == (2, 24, width)


def test_ships_of_one_sensor_count_for_the_means_and_are_no_pairs():
    world = World()
    both, lone = world.see(0, 20), world.see(500, 9, sensors=(OPTICAL,))
    features, modalities, ships = torch.cat([both[0], lone[0]]), both[1] + lone[1], both[2] + lone[2]
    spaces = [fit_space(kind, features, modalities, ships, shrinkage=0.1, dimensions=6) for kind in ("cca", "ridge", "lda")]
    unit = functional.normalize(features.double())
    for space in spaces:
        assert space.ships == 20
        assert torch.allclose(space.means[OPTICAL], unit[torch.tensor(modalities) == OPTICAL].mean(0))
    alone = fit_space("ridge", *both, shrinkage=0.1, dimensions=6)
    assert not torch.allclose(spaces[1].means[OPTICAL], alone.means[OPTICAL])


@pytest.mark.parametrize("kind", ["centre", "ridge", "lda", "cca"])
def test_too_few_ships_are_refused(kind):
    features, modalities, ships = World().see(0, 2)
    with pytest.raises(DataError, match=rf"TEST.COMMON_SPACE '{kind}' .* there are 2 of them, fewer than 3"):
        fit_space(kind, features, modalities, ships, shrinkage=0.1, dimensions=6)
    none = World().see(0, 9, sensors=(SAR,))
    with pytest.raises(DataError, match="there are 0 of them"):
        fit_space(kind, *none, shrinkage=0.1, dimensions=6)


def test_the_same_chips_give_the_same_maps_and_norms_do_not_matter(world):
    first, again = fitted("cca", world[0]), fitted("cca", world[0])
    assert torch.equal(first.maps, again.maps)
    features, modalities, _ = world[1]
    assert torch.allclose(first.map_images(features, modalities), first.map_images(7 * features, modalities), atol=1e-6)


def test_samples_take_the_map_of_sar(world):
    space = fitted("cca", world[0])
    features = world[1][0][:12]
    mapped = space.map_samples(features.reshape(4, 3, WIDTH))
    assert torch.equal(mapped.reshape(12, -1), space.map_images(features, [SAR] * 12))
    assert not torch.allclose(mapped.reshape(12, -1), space.map_images(features, [OPTICAL] * 12))


# In a test


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("space")
    write_hoss(root / "data", train_ships=8, test_ships=4)
    torch.manual_seed(0)
    save(root / "weights.pth", build_model(tiny_cfg(), 8).state_dict())
    return root


def run_test(root, output, **changes):
    values = {"DATASETS__ROOT_DIR": root / "data", "TEST__WEIGHT": root / "weights.pth", "OUTPUT_DIR": output}
    ended = call(command.main, *settings(**values | changes))
    return ended, json.loads((output / "results.json").read_text()) if ended.status == 0 else None


def expected(root, **changes):
    """The space of training chips, test images and their features, made here from the configuration."""
    cfg = tiny_cfg(DATASETS__ROOT_DIR=root / "data")
    extractor = build_extractor(cfg, torch.device("cpu"), weights=root / "weights.pth")
    data = read_hoss(root / "data")
    space = fit_chips("cca", extractor.features(data.train), data.train, **changes)
    return space, data, extractor


def test_settings_reach_the_figures(root, tmp_path):
    changes = {"TEST__COMMON_SPACE": "cca", "TEST__COMMON_SPACE_SHRINKAGE": 0.3, "TEST__COMMON_SPACE_DIMENSIONS": 5}
    ended, results = run_test(root, tmp_path, **changes)
    assert ended.status == 0, ended.err
    assert results["common_space"] == {"kind": "cca", "shrinkage": 0.3, "dimensions": 5, "ships": 8}
    assert "common space 'cca': shrinkage 0.3, 5 directions, fitted to 8 training ships" in ended.out
    space, data, extractor = expected(root, shrinkage=0.3, dimensions=5)
    mapped = space.map_images(extractor.features(data.images), [chip.modality for chip in data.images])
    for name, protocol in data.protocols.items():
        score = score_protocol(protocol, rank_protocol(protocol, mapped, data.images, Ranking()), data.images)
        assert results["protocols"][name]["plain"]["mAP"] == score.mAP


def test_pictures_and_space_work_together(root, tmp_path):
    samples = write_samples(tmp_path / "samples", root / "data" / "HOSS" / "query")
    changes = {"TEST__COMMON_SPACE": "cca", "DATASETS__QUERY_ADD_DIR": samples, "TEST__FUSION_TAU": 0.5}
    _, results = run_test(root, tmp_path / "run", **changes)
    space, data, extractor = expected(root, shrinkage=0.01, dimensions=64)
    found = find_samples(data.images, query_dir=str(samples), gallery_dir="")
    mapped = space.map_images(extractor.features(found.images), [chip.modality for chip in data.images])
    fused = fuse_images(mapped, space.map_samples(extractor.samples(found)[0]), found.sources, tau=0.5)
    for name in ("ALL", "O2S"):
        protocol = data.protocols[name]
        score = score_protocol(protocol, rank_protocol(protocol, fused, data.images, Ranking()), data.images)
        assert results["protocols"][name]["fused"]["mAP"] == score.mAP


def test_without_a_space_nothing_is_fitted_and_results_are_as_they_were(root, tmp_path, monkeypatch):
    monkeypatch.setattr(common_space, "build_training_data", None)
    _, default = run_test(root, tmp_path / "a")
    _, off = run_test(root, tmp_path / "b", TEST__COMMON_SPACE="off")
    assert "common_space" not in default
    del default["environment"], off["environment"]
    assert default == off and list(default) == list(off)


def test_the_space_is_fitted_to_the_ships_that_do_not_validate(root, tmp_path):
    _, results = run_test(root, tmp_path, TEST__COMMON_SPACE="lda", DATASETS__VAL_FRACTION=0.5)
    assert results["common_space"]["ships"] == 4


def test_further_ships_are_fitted_too_and_are_no_training_ships(root, tmp_path):
    write_hoss(tmp_path / "more", train_ships=5)  # pids that training ships have as well
    settings = {"TEST__COMMON_SPACE": "cca", "TEST__COMMON_SPACE_DIR": tmp_path / "more"}
    _, results = run_test(root, tmp_path / "run", **settings)
    assert results["common_space"]["ships"] == 8 + 5


def test_a_folder_of_further_ships_that_is_none_is_named_with_its_key(root, tmp_path):
    ended, _ = run_test(root, tmp_path / "run", TEST__COMMON_SPACE="cca", TEST__COMMON_SPACE_DIR=tmp_path / "nothing")
    assert ended.status == 1 and "set TEST.COMMON_SPACE_DIR to the folder that holds HOSS/" in ended.err


def test_a_sentence_for_each_kind():
    base = {"shrinkage": 0.05, "dimensions": 0, "ships": 9}
    assert (
        space_sentence(base | {"kind": "centre"}) == "features are compared less their modality's mean over the training ships"
    )
    assert "all directions" in space_sentence(base | {"kind": "lda"})


def test_too_few_training_ships_end_the_command_in_a_sentence(tmp_path, root):
    write_hoss(tmp_path / "data", train_ships=2)
    ended, _ = run_test(root, tmp_path / "run", DATASETS__ROOT_DIR=tmp_path / "data", TEST__COMMON_SPACE="cca")
    assert ended.status == 1
    assert "there are 2 of them" in ended.sentence


def test_rankings_without_labels_are_made_in_the_space_too(root, tmp_path):
    def distances(**changes):
        sides = [
            f"--{side}={root / 'data' / 'HOSS' / folder}"
            for side, folder in (("query", "query"), ("gallery", "bounding_box_test"))
        ]
        ended = call(
            rank.main, f"--weights={root / 'weights.pth'}", *sides, f"--output={tmp_path}",
            *settings(DATASETS__ROOT_DIR=root / "data", **changes),
        )  # fmt: skip
        assert ended.status == 0, ended.err
        return (tmp_path / "ranking.csv").read_text()

    assert distances() != distances(TEST__COMMON_SPACE="cca")
