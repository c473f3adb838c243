"""Published files and ours are read without running code, and what does not fit is listed."""

import logging
import pickle
import sys
import types

import pytest
import torch

from bbdm.averaging import build_average
from bbdm.checkpoints import fill_network, read_bridge, read_first_stage
from bbdm.first_stage import make_first_stage
from bbdm.unet import make_unet
from utils.errors import CheckpointError


@pytest.fixture
def network():
    torch.manual_seed(0)
    return make_unet(in_channels=3, width=32, multipliers=(1, 1), blocks=1, head_width=32)


@pytest.fixture
def stage():
    torch.manual_seed(1)
    return make_first_stage(width=32, multipliers=(1, 1), blocks=1, codes=8)


def prefixed(prefix, module):
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def test_a_bare_network_is_read(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "bridge_1.pth")
    tensors = read_bridge(tmp_path / "bridge_1.pth").averages
    assert tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in network.state_dict().items())


def test_published_files_give_the_averaged_network_and_the_first_stage(tmp_path, network, stage, caplog):
    caplog.set_level(logging.INFO)
    averages = {"denoise_fn." + name: tensor + 1 for name, tensor in network.named_parameters()}
    model = {**prefixed("denoise_fn.", network), **prefixed("vqgan.", stage), "vqgan.loss.weight": torch.zeros(2)}
    torch.save({"model": model, "ema": averages, "epoch": 3, "step": 100}, tmp_path / "published.pth")
    tensors = read_bridge(tmp_path / "published.pth").averages
    assert torch.equal(tensors["out.2.weight"], network.out[2].weight + 1)
    fill_network(network, tensors, "published.pth", "BBDM.*")
    assert torch.equal(network.out[2].weight, averages["denoise_fn.out.2.weight"])
    fill_network(stage, read_first_stage(tmp_path / "published.pth"), "published.pth", "BBDM.*")
    assert f"{len(averages)} of them averaged" in caplog.text
    assert "1 others left out" in caplog.text


def test_a_network_under_state_dict_is_read_and_only_what_is_left_out_is_told(tmp_path, network, caplog):
    caplog.set_level(logging.INFO)
    torch.save({"state_dict": prefixed("denoise_fn.", network)}, tmp_path / "a.ckpt")
    assert read_bridge(tmp_path / "a.ckpt").averages.keys() == network.state_dict().keys()
    assert "0 of them averaged" in caplog.text
    assert "not needed" not in caplog.text


def test_our_training_state_gives_the_averaged_network(tmp_path, network):
    average = build_average(network)
    average.module.out[2].bias.data.fill_(7.0)
    torch.save({"model": network.state_dict(), "ema": average.module.state_dict(), "epoch": 1}, tmp_path / "last.pth")
    assert read_bridge(tmp_path / "last.pth").averages["out.2.bias"].tolist() == [7.0] * 3


def test_published_files_give_the_rescaler_and_the_statistics(tmp_path, network):
    weight = torch.ones(3, 3, 1, 1)
    name = "cond_stage_model.channel_mapper.weight"
    model = {**prefixed("denoise_fn.", network), name: weight, "cond_stage_model.encoder.conv_in.bias": torch.zeros(2)}
    statistics = {key: torch.full((1, 3, 1, 1), 2.0) for key in ("ori_latent_mean", "ori_latent_std", "cond_latent_mean")}
    averages = {"denoise_fn." + key: value for key, value in network.named_parameters()} | {name: 3 * weight}
    torch.save({"model": model, "ema": averages, "step": 4, **statistics}, tmp_path / "published.pth")
    found = read_bridge(tmp_path / "published.pth")
    assert found.weights.keys() == found.averages.keys() == {*network.state_dict(), name, *statistics}
    assert torch.equal(found.weights[name], weight)
    assert torch.equal(found.averages[name], 3 * weight)
    assert torch.equal(found.averages["ori_latent_std"], statistics["ori_latent_std"])


OURS = {"update": {"steps": 7}, "config": "BBDM:\n  ACCUMULATION: 4\n"}


@pytest.mark.parametrize(
    ("progress", "batches"),
    [({"step": 90}, 90), (OURS, 28), ({}, None), ({"update": {"steps": 7}}, None), (OURS | {"config": "BBDM: ["}, None)],
)
def test_both_sets_and_the_count_of_batches_are_read(tmp_path, network, progress, batches):
    average = build_average(network)
    average.module.out[2].bias.data.fill_(7.0)
    both = {"model": network.state_dict(), "ema": average.module.state_dict(), "epoch": 1, **progress}
    torch.save(both, tmp_path / "last.pth")
    found = read_bridge(tmp_path / "last.pth")
    assert torch.equal(found.weights["out.2.bias"], network.out[2].bias)
    assert found.averages["out.2.bias"].tolist() == [7.0] * 3
    assert (found.batches, found.path) == (batches, tmp_path / "last.pth")
    for part in ("model", "ema"):  # one set goes on from nothing: its average is yet to begin
        torch.save({key: value for key, value in both.items() if key != part}, tmp_path / "one.pth")
        one = read_bridge(tmp_path / "one.pth")
        assert one.batches is None
        assert one.weights.keys() == one.averages.keys() == network.state_dict().keys()
        assert torch.equal(one.weights["out.2.bias"], one.averages["out.2.bias"])


def test_latent_diffusion_files_are_read_past_what_is_not_needed(tmp_path, stage, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    package = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")

    class ModelCheckpoint:
        def __reduce__(self):
            return ModelCheckpoint, ()

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = package.__name__, "ModelCheckpoint"
    package.ModelCheckpoint = ModelCheckpoint
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    content = {
        "state_dict": {**stage.state_dict(), "loss.discriminator.main.0.weight": torch.zeros(3)},
        "callbacks": {ModelCheckpoint: {"best": 0.1}},
        "hyper_parameters": ModelCheckpoint(),
    }
    torch.save(content, tmp_path / "model.ckpt")
    tensors = read_first_stage(tmp_path / "model.ckpt")
    assert tensors.keys() == stage.state_dict().keys()
    assert "not needed were left out: pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint" in caplog.text


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file was run')",)


def test_a_file_that_wants_to_run_code_is_refused(tmp_path, network):
    torch.save({"model": prefixed("denoise_fn.", network), "extra": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match=r"could run code"):
        read_bridge(tmp_path / "trap.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(CheckpointError):
        read_bridge(tmp_path / "bare.pth")


def test_files_without_the_part_asked_for_are_refused(tmp_path, network, stage):
    torch.save(stage.state_dict(), tmp_path / "stage.pth")
    torch.save(network.state_dict(), tmp_path / "bridge.pth")
    with pytest.raises(CheckpointError, match=r"no bridge network"):
        read_bridge(tmp_path / "stage.pth")
    with pytest.raises(CheckpointError, match=r"no first stage"):
        read_first_stage(tmp_path / "bridge.pth")
    with pytest.raises(CheckpointError, match=r"there is no checkpoint"):
        read_bridge(tmp_path / "nowhere.pth")
    torch.save({"model": network.state_dict(), "ema": {"input_blocks.9.0.weight": torch.zeros(1)}}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"do not belong to its network \(input_blocks.9"):
        read_bridge(tmp_path / "odd.pth")


def test_what_does_not_fit_is_listed(network):
    tensors = dict(network.state_dict())
    tensors["out.2.bias"] = torch.zeros(5)
    tensors["extra"] = tensors.pop("out.0.bias")
    with pytest.raises(CheckpointError) as error:
        fill_network(network, tensors, "some.pth", "BBDM.WIDTH")
    assert str(error.value) == (
        "some.pth does not fit the model: 1 missing (out.0.bias); 1 unknown (extra); 1 of another shape (out.2.bias); "
        "see BBDM.WIDTH"
    )
