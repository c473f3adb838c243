"""FID, LPIPS and diversity: by formula, and by networks of files that a user names."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torchmetrics
import torchvision
from torch.nn import functional
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bbdm import evaluate
from bbdm.quality import frechet_distance, measure_quality, read_inception, read_lpips
from configs import load_cfg
from utils.errors import CheckpointError

CPU = torch.device("cpu")


def random_pictures(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def expected_distance(first, second):
    first, second = first.double().numpy(), second.double().numpy()
    covariances = [np.cov(values, rowvar=False) for values in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    means = first.mean(0) - second.mean(0)
    return means @ means + np.trace(covariances[0] + covariances[1] - 2 * root)


def test_the_frechet_distance_is_that_of_its_formula():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(40, 6, generator=generator)
    second = 1.5 * torch.randn(30, 6, generator=generator) @ torch.rand(6, 6, generator=generator) + 0.3
    assert frechet_distance(first, second) == pytest.approx(expected_distance(first, second), rel=1e-5)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-5)
    assert frechet_distance(first, first + 2) == pytest.approx(6 * 2**2, rel=1e-5)


def test_every_measure_of_a_few_pictures():
    samples, real = random_pictures(4, 3, 3, 8, 8), random_pictures(4, 3, 8, 8, seed=1)
    seen = []

    def features(pictures):
        return pictures.float().flatten(1)[:, :2]

    def perceive(first, second):
        seen.append((first, second))
        return first.float().mean((1, 2, 3))

    measured = measure_quality(samples, real, ["a", "b", "b", "c"], features=features, perceive=perceive)
    assert measured.keys() == {"deviation", "Frechet", "LPIPS"}
    deviation = np.std(samples.numpy().astype(float), axis=1).mean()
    assert measured["deviation"].mean == pytest.approx(deviation, rel=1e-5)
    distance = expected_distance(features(samples.flatten(0, 1)), features(real))
    assert measured["Frechet"].mean == pytest.approx(distance, rel=1e-4)
    assert (measured["Frechet"].low, measured["Frechet"].high) == (0, np.inf)
    assert measured["LPIPS"].mean == pytest.approx(samples.float().mean().item(), rel=1e-5)
    first, second = (torch.cat(parts) for parts in zip(*seen))
    assert torch.equal(first, samples.flatten(0, 1))
    assert torch.equal(second, real.repeat_interleave(3, dim=0)), "each sample with the real picture of its place"
    assert (measured["LPIPS"].queries, measured["LPIPS"].ships) == (4, 3)


def test_what_cannot_be_measured_is_left_out():
    one = measure_quality(random_pictures(1, 2, 3, 8, 8), random_pictures(1, 3, 8, 8), ["a"], features=lambda x: x)
    assert one.keys() == {"deviation"}


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file in the layout of the published one, with start values."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def test_fid_is_measured_by_the_inception_of_the_named_file(inception):
    features = read_inception(inception, CPU)
    pictures = random_pictures(3, 3, 16, 16)
    found = features(pictures)
    assert found.shape == (3, 2048)
    with torch.no_grad():
        (expected,) = FeatureExtractorInceptionV3("other", ["2048"], feature_extractor_weights_path=str(inception))(pictures)
    torch.testing.assert_close(found, expected)
    quality = evaluate.build_quality(load_cfg(None, ["BBDM.FID_WEIGHTS", str(inception)]), CPU, lambda grey: grey.flatten(1))
    samples = random_pictures(3, 1, 3, 16, 16, seed=2)
    measured = quality(samples, pictures, ["a", "b", "c"])["Frechet"].mean
    assert measured == pytest.approx(frechet_distance(features(samples[:, 0]), found), rel=1e-4)


def test_without_a_file_the_distance_is_measured_in_the_space_of_the_evaluation():
    quality = evaluate.build_quality(load_cfg(), CPU, lambda grey: grey.mean((1, 2))[:, None] * torch.tensor([1.0, 2.0]))
    samples, real = random_pictures(5, 2, 3, 8, 8), random_pictures(5, 3, 8, 8, seed=3)
    grey = [
        (pictures.float() / 255).mean((1, 2, 3))[:, None] * torch.tensor([1.0, 2.0])
        for pictures in (samples.flatten(0, 1), real)
    ]
    measured = quality(samples, real, list("abcde"))
    assert measured["Frechet"].mean == pytest.approx(frechet_distance(*grey), rel=1e-3)
    assert "LPIPS" not in measured


def test_another_network_is_no_inception(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth is not the Inception v3 of FID; BBDM\.FID_WEIGHTS names"):
        read_inception(tmp_path / "other.pth", CPU)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint"):
        read_inception(tmp_path / "nowhere.pth", CPU)


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file was run')",)


def test_a_file_that_wants_to_run_code_is_refused(tmp_path):
    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    for read in (read_inception, read_lpips):
        with pytest.raises(CheckpointError, match="could run code"):
            read(tmp_path / "trap.pth", CPU)


@pytest.mark.parametrize(("name", "cuts"), [("alexnet", (2, 5, 8, 10, 12)), ("vgg16", (4, 9, 16, 23, 30))])
def test_lpips_is_measured_by_the_network_of_the_named_file(tmp_path, name, cuts):
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    perceive = read_lpips(tmp_path / f"{name}.pth", CPU)
    first, second = random_pictures(2, 3, 64, 80), random_pictures(2, 3, 64, 80, seed=1)
    kept = Path(torchmetrics.functional.image.__file__).parent / "lpips_models" / f"{name[:3] if cuts[0] == 4 else 'alex'}.pth"
    heads = torch.load(kept, map_location="cpu", weights_only=True)
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    states = [((pictures / 127.5 - 1) - shift) / scale for pictures in (first, second)]
    expected, start = torch.zeros(2), 0
    with torch.no_grad():
        for layer, end in enumerate(cuts):
            states = [network.features[start:end](state) for state in states]
            difference = (functional.normalize(states[0], dim=1) - functional.normalize(states[1], dim=1)).square()
            weight = heads[f"lin{layer}.model.1.weight"]
            expected += (difference * weight.view(1, -1, 1, 1)).sum(1).mean((1, 2))
            start = end
    found = perceive(first, second)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert found.min() > 0
    assert perceive(first, first).tolist() == [0, 0]
    assert perceive(first[..., :8, :8], second[..., :8, :8]).shape == (2,), "small pictures are enlarged"


def test_another_network_is_refused_for_lpips(tmp_path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "squeeze.pth")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    for name in ("squeeze", "other"):
        with pytest.raises(CheckpointError, match=rf"{name}\.pth is neither torchvision's AlexNet nor its VGG-16"):
            read_lpips(tmp_path / f"{name}.pth", CPU)
