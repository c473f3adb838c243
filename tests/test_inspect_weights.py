"""Files are made, inspected, and used with the very lines that the inspection gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import model.resnet
import tools.inspect_weights as tool
from configs import load_cfg
from model.build import build_model
from model.contents import read_contents
from model.heads import MarginHead, linear_head
from model.pretrained import build_start, load_pretrained, load_weights
from model.reid import ReIDModel
from model.resnet import ResNet50
from model.transoss import TransOSS
from tools.inspect_weights import facts, inspect, kind_of, list_uses, main, picture_of, try_it
from utils.checkpoint import save
from utils.errors import CheckpointError

TINY = {"embed_dim": 192, "depth": 2, "num_heads": 3}


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make vit_tiny two blocks deep, to keep the tests short."""
    monkeypatch.setitem(tool.SIZES, "vit_tiny_patch16_224_TransOSS", TINY)


def model_tensors(*, img_size=(256, 128), stride=(16, 16), identities: int = 9, **options) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return ReIDModel(TransOSS(img_size=img_size, stride=stride, **TINY, **options), linear_head(192, identities)).state_dict()


def write(path: Path, content: dict) -> str:
    save(path, content)
    return str(path)


def uses(path: str) -> dict[str, str]:
    contents = read_contents(path)
    return list_uses(path, contents, try_it(contents)[0])


def lines_to(purpose: str, path: str, folder: Path) -> Path:
    """The lines that are given for a purpose, as a file; what is printed has them too."""
    lines = next(lines for what, lines in uses(path).items() if what.startswith(purpose))
    assert lines in inspect(path)
    (folder / "lines.yml").write_text(lines, encoding="utf-8")
    return folder / "lines.yml"


@pytest.mark.parametrize(
    "img_size, stride, options",
    [
        ((256, 128), 16, {}),
        ((256, 128), 12, {}),
        ((384, 128), 16, {"size_embedding": False}),
        ((256, 256), 16, {"modality_embedding": False}),
        ((64, 32), 16, {}),
    ],
)
def test_lines_to_test_with_rebuild_the_model(tmp_path: Path, img_size: tuple, stride: int, options: dict) -> None:
    tensors = model_tensors(img_size=img_size, stride=(stride, stride), **options)
    path = write(tmp_path / "transformer_10.pth", tensors)
    contents = read_contents(path)
    assert kind_of(contents).startswith("a re-identification model")
    assert facts(contents)["identities"] == "9"
    cfg = load_cfg(lines_to("test", path, tmp_path))
    model = build_model(cfg)
    load_weights(cfg.TEST.WEIGHT, model)
    own = model.state_dict()
    assert own.keys() == tensors.keys() - {"classifier.weight"}
    assert all(torch.equal(value, tensors[name]) for name, value in own.items())


def test_identities_of_a_margin_head(tmp_path: Path) -> None:
    """AM-softmax's weight is the other way round, and has a name of its own in the released programs."""
    for kind in ("arcface", "amsoftmax"):
        net = ReIDModel(TransOSS(img_size=(32, 32), **TINY), MarginHead(kind, 192, 9, scale=30, margin=0.5))
        assert facts(read_contents(write(tmp_path / f"{kind}.pth", net.state_dict())))["identities"] == "9"


@pytest.mark.parametrize("state", [False, True])
def test_lines_for_a_resnet_rebuild_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: bool) -> None:
    monkeypatch.setattr(model.resnet, "LAYERS", (1, 1, 1, 1))
    tensors = ReIDModel(ResNet50(), linear_head(2048, 9)).state_dict()
    content = {"model": tensors, "optimizers": [], "epoch": 3} if state else tensors
    path = write(tmp_path / "resnet50_10.pth", content)
    kind = kind_of(read_contents(path))
    assert kind.endswith("a re-identification model on ResNet-50")
    assert kind.startswith("a training state after epoch 3") == state
    cfg = load_cfg(lines_to("test", path, tmp_path))
    built = build_model(cfg)
    load_weights(cfg.TEST.WEIGHT, built)
    assert torch.equal(built.base.layer4[0].conv2.weight, tensors["base.layer4.0.conv2.weight"])
    start = load_cfg(lines_to("start", write(tmp_path / "bare.pth", ResNet50().state_dict()), tmp_path))
    assert (start.MODEL.NAME, start.MODEL.PRETRAIN_CHOICE) == ("resnet50", "imagenet")
    build_start(start, build_model(start))


def test_another_resnet_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {**ResNet50().state_dict(), "layer3.6.conv1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"resnet101\.pth has layer3\.6\.conv1\.weight, which ResNet-50 lacks"):
        inspect(write(tmp_path / "resnet101.pth", tensors))


def test_lines_to_start_with_take_the_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=70, patch_size=14, init_values=0.1, reg_tokens=4, depth=2
    )
    path = write(tmp_path / "dino.safetensors", vit.half().state_dict())
    contents = read_contents(path)
    sizes = facts(contents)
    assert kind_of(contents) == "a Vision Transformer for ordinary pictures"
    assert (sizes["width"], sizes["blocks"], sizes["patch"], sizes["layer scale"]) == ("192", "2", "14 x 14", "yes")
    assert sizes["heads"].startswith("3, ")
    assert sizes["patches"].startswith("25, 5 x 5")
    assert (sizes["other tokens"], sizes["types"]) == ("4", "float16")
    cfg = load_cfg(lines_to("start", path, tmp_path))
    report = load_pretrained(cfg.MODEL.PRETRAIN_PATH, build_model(cfg), choice=cfg.MODEL.PRETRAIN_CHOICE)
    assert {"pos_embed", "patch_embed.proj.weight"} == set(report.names("resized"))


def test_a_training_state(tmp_path: Path) -> None:
    path = write(tmp_path / "last.pth", {"model": model_tensors(), "optimizers": [{}], "epoch": 3})
    assert kind_of(read_contents(path)).startswith("a training state after epoch 3, with a re-identification model")
    assert path == load_cfg(lines_to("resume", path, tmp_path)).SOLVER.RESUME


def transreid_tensors(*, branches: bool, prefix: str = "") -> dict[str, Tensor]:
    """As TransReID writes them: one stem, cameras, necks; with JPM the last block and norm twice more, with other values."""
    own = ("base.patch_embed_SAR", "base.mie_embed", "base.wh_embed", "logit_scale")
    tensors = {name: value for name, value in model_tensors().items() if not name.startswith(own)}
    tensors["base.sie_embed"] = torch.zeros(6, 1, 192)
    if branches:
        for name in [name for name in tensors if name.startswith(("base.blocks.1.", "base.norm."))]:
            part = name.replace("base.blocks.1.", "0.").replace("base.norm.", "1.")
            tensors |= {f"b1.{part}": tensors[name] + 1, f"b2.{part}": tensors[name] + 2}
        tensors["bottleneck_1.weight"] = torch.ones(192)
    return {f"{prefix}{name}": value for name, value in tensors.items()}


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_transreid_is_never_called_transoss(tmp_path: Path, branches: bool, prefix: str) -> None:
    tensors = transreid_tensors(branches=branches)
    path = write(tmp_path / "transformer_120.pth", transreid_tensors(branches=branches, prefix=prefix))
    contents = read_contents(path)
    kind = kind_of(contents)
    assert "TransReID" in kind and ("JPM: b1 is its last block and norm" in kind) == branches
    assert "TransOSS" not in kind and not contents.is_transoss
    assert facts(contents)["identities"] == "9"
    assert list(uses(path)) == ["start training from it"]
    cfg = load_cfg(lines_to("start", path, tmp_path))
    built = build_model(cfg)
    report = load_pretrained(path, built, choice=cfg.MODEL.PRETRAIN_CHOICE)
    last = "b1.0." if branches else "base.blocks.1."
    assert torch.equal(built.base.blocks[1].attn.qkv.weight, tensors[f"{last}attn.qkv.weight"])
    assert torch.equal(built.base.norm.weight, tensors["b1.1.weight" if branches else "base.norm.weight"])
    assert torch.equal(built.base.blocks[0].mlp.fc1.weight, tensors["base.blocks.0.mlp.fc1.weight"])
    assert torch.equal(built.base.patch_embed_SAR.proj.weight, tensors["base.patch_embed.proj.weight"])
    assert report.names("missing") == [] and "patch_embed_SAR.proj.weight" in report.names("copied")
    reasons = {entry.name: entry.why for entry in report.entries if entry.state == "skipped"}
    assert "embedding of cameras" in reasons["base.sie_embed"]
    if branches:
        assert reasons["b2.0.norm1.weight"].startswith("a branch of patches")
        assert reasons["base.blocks.1.norm1.weight"] == reasons["base.norm.bias"] != ""
        assert "b1 stands in its place" in reasons["base.norm.bias"]


def test_a_small_grid_of_transreid_is_not_taken_for_a_square(tmp_path: Path) -> None:
    """24 patches and the class token are 25 positions, which a bare backbone's would be read as 5 x 5 patches."""
    own = ("base.patch_embed_SAR", "base.mie_embed", "base.wh_embed")
    tensors = {name: value for name, value in model_tensors(img_size=(96, 64)).items() if not name.startswith(own)}
    contents = read_contents(write(tmp_path / "w.pth", tensors))
    assert contents.position_prefix() == 1
    assert contents.is_transreid and not contents.has_branches


def test_the_output_of_pretraining_can_start_but_not_be_tested(tmp_path: Path) -> None:
    tensors = {name.removeprefix("base."): value for name, value in model_tensors().items() if name.startswith("base.")}
    path = write(tmp_path / "pre.pth", tensors)
    assert kind_of(read_contents(path)) == "a TransOSS backbone, without a neck"
    assert list(uses(path)) == ["start training from it"]


def test_a_size_without_a_model(tmp_path: Path) -> None:
    tensors = TransOSS(img_size=(32, 32), embed_dim=64, depth=1, num_heads=1).state_dict()
    path = write(tmp_path / "w.pth", tensors)
    assert "It fits no MODEL.TRANSFORMER_TYPE: none is of width 64 with 1 blocks." in inspect(path)
    assert uses(path) == {}


def test_too_little_for_a_model(tmp_path: Path) -> None:
    whole = TransOSS(img_size=(256, 128), **TINY).state_dict()
    tensors = {name: value for name, value in whole.items() if ".mlp." not in name}
    path = write(tmp_path / "w.pth", tensors)
    assert "It fits no model: it holds " in inspect(path)
    assert uses(path) == {}


def test_bridges_and_first_stages(tmp_path: Path) -> None:
    bridge = {"model": {"denoise_fn.input_blocks.0.0.weight": torch.ones(2), "vqgan.quantize.embedding.weight": torch.ones(2)}}
    path = write(tmp_path / "bridge.pth", bridge)
    assert path == load_cfg(lines_to("sample", path, tmp_path)).BBDM.WEIGHT
    path = write(tmp_path / "vq.pth", {"quantize.embedding.weight": torch.ones(2), "encoder.conv_in.weight": torch.ones(2)})
    assert path == load_cfg(lines_to("sample", path, tmp_path)).BBDM.FIRST_STAGE


@pytest.mark.parametrize(
    "size, stride, grid",
    [((256, 128), 16, (16, 8)), ((256, 128), 12, (21, 10)), ((384, 384), 16, (24, 24)), ((80, 48), 16, (5, 3))],
)
def test_pictures_of_a_grid(size: tuple, stride: int, grid: tuple) -> None:
    assert picture_of(grid) == (size, stride)


def test_names_with_odd_characters_survive_the_lines(tmp_path: Path) -> None:
    (tmp_path / "é: #1 'x'").mkdir()
    path = write(tmp_path / "é: #1 'x'" / "w.pth", model_tensors())
    assert path == load_cfg(lines_to("test", path, tmp_path)).TEST.WEIGHT


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path / "w.pth", model_tensors())
    main([path])
    text = capsys.readouterr().out
    assert text.startswith(f"{path} is a re-identification model")
    assert "It fits vit_tiny_patch16_224_TransOSS (100.0 %" in text
    assert "what became of the tensors" in text


@pytest.mark.parametrize(
    "content, message",
    [
        (nn.Linear(2, 2).state_dict(), "holds no Vision Transformer"),
        ({"epoch": 3}, "holds no tensors by name"),
        ({"model": {"cls_token": torch.ones(1)}, "hook": os.getcwd}, "could run code, so it was not read"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: dict, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"w\.pth .*{message}"):
        inspect(str(tmp_path / "w.pth"))


def test_the_command_ends_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.inspect_weights", str(tmp_path / "absent.pth")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: there is no checkpoint") and ended.stderr.count("\n") == 1
