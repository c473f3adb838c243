"""Training the first stage: its objective by hand, the codes that it uses and revives, and what is judged."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bbdm import train_first_stage
from bbdm.first_stage import make_first_stage
from bbdm.train_first_stage import FirstStageTask, first_stage_loss, reconstruct
from datasets.records import Batch
from processor.update import Update
from tests.commands import tiny_cfg
from utils.device import Precision
from utils.log import MetricsWriter

FLOAT32 = Precision("cpu")


class Stage(nn.Module):
    """Stands for a `FirstStage`: a latent is half the picture, its code the nearest of 0 and 1, and a picture the code."""

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.5))
        self.quantize = SimpleNamespace(embedding=nn.Embedding(2, 3))

    def encode(self, pictures):
        return self.share * pictures

    def quantise(self, latent):
        codes = (latent > 0.5).long()
        return codes.float(), codes[:, 0]

    def decode_codes(self, vectors):
        return vectors


def task_of(validation=None) -> FirstStageTask:
    stage = Stage()
    update = Update(stage, [torch.optim.SGD([stage.share], lr=0.0)], torch.amp.GradScaler("cpu", enabled=False))
    return FirstStageTask(stage, update, FLOAT32, torch.device("cpu"), validation)


def batch_of(*greys: float) -> Batch:
    count = len(greys)
    images = torch.tensor(greys)[:, None, None, None].expand(-1, 3, 2, 2).clone()
    return Batch(images, torch.zeros(count, 3), torch.zeros(count).long(), None, torch.arange(count))


def test_the_objective_by_hand():
    """A grey of 1.6 is the latent 0.8, whose code is 1: L1 0.6, codes to latents 0.04, latents to codes 0.25 of that."""
    loss, codes, latent = first_stage_loss(Stage(), batch_of(1.6).images, FLOAT32)
    assert loss.item() == pytest.approx(0.6 + 0.04 + 0.25 * 0.04)
    assert codes.unique().tolist() == [1]
    assert latent.unique().tolist() == pytest.approx([0.8])
    assert not latent.requires_grad


def test_a_picture_is_decoded_from_its_codes_and_its_gradient_passes_them():
    torch.manual_seed(0)
    stage, pictures = make_first_stage(width=32, multipliers=(1, 1), blocks=1, codes=8), torch.randn(1, 3, 8, 8)
    picture, codes, latent, quantised = reconstruct(stage, pictures, FLOAT32)
    torch.testing.assert_close(picture, stage.decode(stage.encode(pictures)), atol=1e-3, rtol=0)
    assert torch.equal(quantised, stage.quantize.embedding(codes).movedim(-1, 1))
    picture.sum().backward()
    assert stage.quant_conv.weight.grad.abs().sum() > 0
    assert stage.quantize.embedding.weight.grad is None
    assert torch.equal(latent, stage.encode(pictures))


def test_codes_that_an_epoch_used_are_counted_and_the_others_revived(monkeypatch):
    revived = []
    monkeypatch.setattr(train_first_stage, "revive_codes", lambda stage, used, latent: revived.append((used.tolist(), latent)))
    task = task_of()
    for greys, used in (([1.6, 2.0], [False, True]), ([1.6, 0.2], [True, True])):
        task.begin(1)
        task.step(batch_of(*greys))
        assert task.finish(1, last=False) == {"codes_used": sum(used)}
        assert revived[-1][0] == used
        assert revived[-1][1][:, 0, 0, 0].tolist() == pytest.approx([grey / 2 for grey in greys])


def test_held_out_pictures_are_judged_by_the_mean_of_their_l1(tmp_path):
    task = task_of([batch_of(1.6, 1.6), batch_of(0.1)])
    task.network.train()
    assert task.evaluate(2, MetricsWriter(tmp_path / "m.jsonl")) == {}
    assert not task.network.training
    (line,) = (tmp_path / "m.jsonl").read_text().splitlines()
    assert line.startswith('{"kind": "validation", "epoch": 2, "validation_l1": ')
    assert float(line.split()[-1].rstrip("}")) == pytest.approx((0.6 + 0.6 + 0.1) / 3)


def test_the_optimiser_and_the_start_are_those_of_the_configuration():
    keys = {"WIDTH": 32, "MULTIPLIERS": "[1,1]", "BLOCKS": 1, "CODES": 4}
    cfg = tiny_cfg(SOLVER__BASE_LR=0.03, **{f"BBDM__FIRST_STAGE_{key}": value for key, value in keys.items()})
    task = train_first_stage.build_first_stage_task(cfg, SimpleNamespace(validation=()), torch.device("cpu"))
    group = task.update.optimizers[0].param_groups[0]
    assert (group["lr"], group["betas"], task.rate(), task.validation) == (0.03, (0.5, 0.9), 0.03, None)
