"""The term that asks a re-identification network what it sees in estimates of the SAR picture."""

import json

import pytest
import torch
from torch import nn

from bbdm import train
from bbdm.bridge import Bridge, make_schedule
from bbdm.feature_term import FeatureTerm, build_feature_term
from bbdm.model import BridgeModel
from configs import load_cfg
from model.build import build_model
from model.features import Features
from model.reid import ReIDModel
from processor.description import build_description
from tests.chip_files import write_hoss
from tests.commands import call, tiny_cfg
from tests.test_bbdm_programs import TINY
from utils.checkpoint import save
from utils.device import Precision
from utils.errors import UsageError

CPU = torch.device("cpu")


class Corner(nn.Module):
    """A network whose feature is the first two values of a picture's first row, and its first size."""

    def forward(self, images, modalities, sizes):
        self.seen = (images.shape, modalities.tolist())
        return type("Output", (), {"feature": torch.cat([images[:, 0, 0, :2], sizes[:, :1]], dim=1)})


def term_of(network=None, **changes) -> FeatureTerm:
    values = {"size": (2, 2), "mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.5), "weight": 1.0}
    return FeatureTerm(network or Corner(), **values | {"until": 0.5, "grey": False} | changes)


def pictures(*rows):
    """(B, 3, 2, 2) of equal bands, whose first row is given."""
    return torch.tensor(rows, dtype=torch.float32)[:, None, None].expand(-1, 3, 2, 2).contiguous()


NOTHING = torch.zeros(4, 3)


def test_the_term_is_one_less_the_cosine_of_what_the_network_sees_of_sar_pictures():
    network = Corner()
    estimate, sar = pictures([1, 0], [0, 1]), pictures([1, 0], [1, 0])
    assert term_of(network)(estimate, sar, NOTHING, torch.zeros(2)).item() == pytest.approx((0 + 1) / 2, abs=1e-6)
    assert network.seen == ((2, 3, 2, 2), [1, 1])
    assert term_of(weight=3.0)(estimate, sar, NOTHING, torch.zeros(2)).item() == pytest.approx(1.5, abs=1e-6)


def test_late_times_count_for_nothing_but_in_the_mean():
    estimate, sar = pictures([0, 1], [0, 1]), pictures([1, 0], [1, 0])
    assert term_of()(estimate, sar, NOTHING, torch.tensor([0.5, 0.6])).item() == pytest.approx(0.5, abs=1e-6)


def test_an_estimate_has_the_size_of_its_optical_chip_and_the_sar_picture_its_own():
    same = pictures([1, 0])
    apart = term_of()(same, same, torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]), torch.zeros(1))
    assert apart.item() == pytest.approx(1 - 2**-0.5, abs=1e-6)


def test_estimates_are_grey_where_samples_are():
    estimate, sar = pictures([1, 0]), pictures([1, 0])
    estimate[:, 0] = torch.tensor([0.0, 1.0])  # the other bands make the mean (2/3, 1/3)
    assert term_of()(estimate, sar, NOTHING[:2], torch.zeros(1)).item() == pytest.approx(1, abs=1e-6)
    grey = term_of(grey=True)(estimate, sar, NOTHING[:2], torch.zeros(1))
    assert grey.item() == pytest.approx(1 - 2 / 5**0.5, abs=1e-6)


def test_the_gradient_reaches_the_estimate_alone():
    backbone = nn.Linear(2, 2)
    network = ReIDModel.__new__(ReIDModel)
    nn.Module.__init__(network)
    network.forward = lambda images, modalities, sizes: type("Output", (), {"feature": backbone(images[:, 0, 0, :2])})
    backbone.requires_grad_(False)
    estimate, sar = pictures([1, 0]).requires_grad_(), pictures([0, 1]).requires_grad_()
    term_of(network)(estimate, sar, NOTHING[:2], torch.zeros(1)).backward()
    assert estimate.grad.abs().sum() > 0 and sar.grad is None and backbone.weight.grad is None


def test_the_loss_of_a_bridge_gains_the_term_of_its_own_estimate():
    bridge = Bridge(make_schedule(num_timesteps=11))

    class Zero(nn.Module):
        def forward(self, x_t, t, context):
            return torch.zeros_like(x_t)  # so that the estimate is x_t

    model = BridgeModel(bridge, Zero(), None, Precision("cpu"), "y")
    optical, sar, noise, t = pictures([0, 1]), pictures([1, 0]), torch.zeros(1, 3, 2, 2), torch.tensor([4])
    plain = model.loss(optical, sar, t, noise)
    joined = model.with_term(term_of()).loss(optical, sar, t, noise, sizes=NOTHING[:2])
    m = bridge.m[4]
    cosine = (1 - m) / (m**2 + (1 - m) ** 2).sqrt()
    assert (joined - plain).item() == pytest.approx((1 - cosine).item(), abs=1e-5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("term")
    write_hoss(root / "data", train_ships=6, views=1)
    cfg = tiny_cfg(INPUT__PIXEL_MEAN="[0.1,0.2,0.3]")
    torch.manual_seed(0)
    save(root / "reid.pth", build_model(cfg, 6).state_dict(), build_description(cfg, "transformer"))
    return root


def test_the_network_is_built_from_its_weights_alone_and_learns_nothing(root):
    words = ["BBDM.FEATURE_WEIGHT", "2", "BBDM.FEATURE_NETWORK", str(root / "reid.pth"), "BBDM.FEATURE_UNTIL", "0.3"]
    term = build_feature_term(load_cfg(None, [*words, "BBDM.GREY", "True"]), CPU)
    assert (term.weight, term.until, term.grey, term.size) == (2, 0.3, True, (32, 32))
    assert term.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert not term.network.training and not any(parameter.requires_grad for parameter in term.network.parameters())
    found = term.network(torch.zeros(1, 3, 32, 32), torch.ones(1, dtype=torch.long), torch.zeros(1, 3)).parts
    assert isinstance(found, Features)
    assert build_feature_term(load_cfg(None, []), CPU) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, "BBDM.FEATURE_NETWORK"), ({"BBDM.FEATURE_NETWORK": "x.pth", "BBDM.SPACE": "latent"}, "BBDM.SPACE")],
)
def test_what_the_term_cannot_do_is_said(changes, told):
    words = [word for item in ({"BBDM.FEATURE_WEIGHT": "1"} | changes).items() for word in item]
    with pytest.raises(UsageError, match=told):
        build_feature_term(load_cfg(None, words), CPU)


def test_training_with_the_term_learns_otherwise_and_validates_alike(root, tmp_path):
    base = TINY | {"DATASETS.ROOT_DIR": root / "data", "BBDM.EMA_START": "1"}
    losses = {}
    for name, weight in (("plain", "0"), ("term", "5")):
        own = {"BBDM.FEATURE_WEIGHT": weight, "BBDM.FEATURE_NETWORK": root / "reid.pth", "BBDM.FEATURE_UNTIL": "1"}
        words = [str(word) for item in (base | own | {"OUTPUT_DIR": tmp_path / name}).items() for word in item]
        ended = call(train.main, *words)
        assert ended.status == 0, ended.err
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = next(line["loss"] for line in lines if "loss" in line)
    assert losses["term"] > losses["plain"]
