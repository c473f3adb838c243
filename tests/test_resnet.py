"""The ResNet-50 baseline: it is timm's and torchvision's network, keeps resolution at its end, and refuses other weights."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision

import model.resnet
from model.build import build_model
from model.pretrained import load_pretrained, load_weights
from model.reid import ReIDModel
from model.resnet import ResNet50
from tests.commands import tiny_cfg
from utils.checkpoint import save
from utils.errors import CheckpointError, UsageError

RESNET = {"MODEL__NAME": "resnet50", "MODEL__MIE": False, "MODEL__SSE": False}
SIZE = (2, 3, 64, 32)


@pytest.fixture
def shallow(monkeypatch) -> None:
    """One block a stage: as wide, and a third of the weights."""
    monkeypatch.setattr(model.resnet, "LAYERS", (1, 1, 1, 1))


def features(net: ReIDModel, images: torch.Tensor) -> torch.Tensor:
    return net.eval()(images, torch.zeros(len(images), dtype=torch.int64), torch.zeros(len(images), 3)).feature


def moved(network: torch.nn.Module) -> torch.nn.Module:
    """Off its initial values, so that no tensor can be mistaken for another."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * torch.rand_like(value))
    return network.eval()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_with_the_weights_of_a_library_it_computes_what_the_library_does(tmp_path, library):
    if library == "timm":
        theirs = moved(timm.create_model("resnet50", num_classes=3))
        content = theirs.state_dict()
    else:
        theirs = moved(torchvision.models.resnet50(num_classes=3))
        content = {"state_dict": {f"module.{name}": value for name, value in theirs.state_dict().items()}}
    save(tmp_path / "imagenet.pth", content)
    ours = ReIDModel(ResNet50(last_stride=2))
    report = load_pretrained(tmp_path / "imagenet.pth", ours, choice="imagenet")
    assert {entry.why for entry in report.entries if entry.state == "skipped"} == {"a classifier head"}
    assert not [name for name in report.names("missing") if not name.startswith(("bottleneck", "logit_scale"))]
    images = torch.randn(SIZE)
    theirs.fc = torch.nn.Identity()
    torch.testing.assert_close(features(ours, images), theirs(images), rtol=1e-4, atol=1e-5)


def test_the_last_stage_keeps_its_resolution_without_dilation(shallow):
    for stride, shape in ((1, (4, 2)), (2, (2, 1))):
        net = ResNet50(last_stride=stride).eval()
        assert net.forward_features(torch.randn(SIZE)).shape == (2, 2048, *shape)
        assert net.layer4[0].conv2.dilation == (1, 1)


def test_the_configuration_chooses_it(shallow):
    net = build_model(tiny_cfg(**RESNET, MODEL__LAST_STRIDE=2), 5)
    assert net.base.layer4[0].conv2.stride == (2, 2)
    assert net.classifier.weight.shape == (5, 2048)
    assert build_model(tiny_cfg(**RESNET)).base.layer4[0].conv2.stride == (1, 1)


@pytest.mark.parametrize("key", ["MODEL__MIE", "MODEL__SSE"])
def test_embeddings_that_it_lacks_are_refused(key):
    with pytest.raises(UsageError, match=r"MODEL\.MIE False and MODEL\.SSE False"):
        build_model(tiny_cfg(**RESNET | {key: True}))


def test_what_was_trained_is_tested_whatever_the_number_of_identities(shallow, tmp_path):
    trained = moved(build_model(tiny_cfg(**RESNET), 7))
    tested = build_model(tiny_cfg(**RESNET))
    save(tmp_path / "resnet50_1.pth", trained.state_dict())
    load_weights(tmp_path / "resnet50_1.pth", tested)
    images = torch.randn(SIZE)
    assert torch.equal(features(tested, images), features(trained, images))


def test_counts_of_batches_may_be_missing_as_in_old_files(shallow, tmp_path):
    tensors = moved(ResNet50()).state_dict()
    save(tmp_path / "old.pth", {name: value for name, value in tensors.items() if "num_batches_tracked" not in name})
    net = build_model(tiny_cfg(**RESNET))
    assert load_pretrained(tmp_path / "old.pth", net, choice="imagenet").names("missing") == []
    assert torch.equal(net.base.layer4[0].conv2.weight, tensors["layer4.0.conv2.weight"])


def wrong_weights(kind: str) -> dict[str, torch.Tensor]:
    """Tensors that are no ResNet-50's of one block a stage."""
    if kind == "vit":
        return build_model(tiny_cfg()).state_dict()
    tensors = ResNet50().state_dict()
    if kind == "deeper":
        tensors["layer3.6.conv1.weight"] = torch.zeros(1)
    if kind == "wider":
        tensors["layer1.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    if kind == "basic":
        tensors = {name: value for name, value in tensors.items() if "conv3" not in name}
    if kind == "broken":
        tensors["conv1.weight"] = tensors["conv1.weight"] * torch.nan
    return tensors


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("vit", "holds no ResNet-50"),
        ("basic", "holds no ResNet-50"),
        ("deeper", r"has layer3\.6\.conv1\.weight, which ResNet-50 lacks"),
        ("wider", r"has layer1\.0\.conv1\.weight of \[128, 64, 1, 1\]"),
        ("broken", r"conv1\.weight that are no finite numbers"),
    ],
)
def test_other_weights_are_refused_in_one_sentence(shallow, tmp_path: Path, kind, said):
    save(tmp_path / "other.pth", wrong_weights(kind))
    with pytest.raises(CheckpointError, match=rf"other\.pth .*{said}") as refused:
        load_pretrained(tmp_path / "other.pth", build_model(tiny_cfg(**RESNET)), choice="imagenet")
    assert "\n" not in str(refused.value)


def test_a_resnet_is_no_start_for_a_transformer(shallow, tmp_path):
    save(tmp_path / "resnet.pth", ResNet50().state_dict())
    with pytest.raises(CheckpointError, match=r"resnet\.pth holds no Vision Transformer"):
        load_pretrained(tmp_path / "resnet.pth", build_model(tiny_cfg()), choice="imagenet")
