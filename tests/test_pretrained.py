"""Starting from weights made elsewhere: files of every kind are made here, and the function they carry over is compared."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from model.contents import contents_of
from model.heads import linear_head
from model.pretrained import (
    backbone_share,
    build_start,
    fit_backbone,
    guess_grid,
    load_pretrained,
    load_weights,
    resize_position_embedding,
)
from model.reid import ReIDModel
from model.transoss import TransOSS
from utils.checkpoint import save
from utils.errors import CheckpointError, UsageError

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def make_model(
    *, identities: int = 0, img_size=(64, 32), mie: bool = True, sse: bool = True, seed: int = 1, **sizes
) -> ReIDModel:
    torch.manual_seed(seed)
    base = TransOSS(img_size=img_size, modality_embedding=mie, size_embedding=sse, **{**SIZES, **sizes})
    model = ReIDModel(base, linear_head(base.num_features, identities) if identities else None)
    return scatter(model).eval()


def make_vit(*, name: str = "vit_tiny_patch16_224", img_size=(64, 32), **options) -> VisionTransformer:
    torch.manual_seed(0)
    return scatter(timm.create_model(name, pretrained=False, img_size=img_size, num_classes=5, **SIZES, **options)).eval()


def scatter(module: nn.Module) -> nn.Module:
    """Move every tensor off its initial value, so that none can be mistaken for another."""
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value))
    module.apply(lambda part: part.running_var.abs_() if isinstance(part, nn.BatchNorm1d) else None)
    return module


def write(path: Path, content: dict) -> Path:
    save(path, content)
    return path


def plain(model: ReIDModel, images: Tensor) -> Tensor:
    """The class token of optical images."""
    return model.base(images, torch.zeros(len(images), dtype=torch.int64), torch.zeros(len(images), 3)).shared


def images_of(height: int = 64, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.3},
        {"no_embed_class": True},
        {"init_values": 0.3, "no_embed_class": True},
        {"qkv_bias": False},
    ],
    ids=str,
)
def test_the_function_of_a_timm_model_carries_over(tmp_path: Path, options: dict) -> None:
    """A bias that the file's network lacks is zero, not what the model began with."""
    vit = make_vit(**options)
    model = make_model(mie=False, sse=False)
    path = write(tmp_path / "vit.pth", vit.state_dict())
    load_pretrained(path, model, choice="imagenet")
    torch.testing.assert_close(plain(model, images_of()), vit.forward_features(images_of())[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "renames",
    [{".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}, {"blocks.": "blocks.0."}],
    ids=["older timm", "blocks in chunks"],
)
def test_other_names_of_the_same_tensors(renames: dict[str, str]) -> None:
    vit, model = make_vit(init_values=0.3), make_model(mie=False, sse=False)
    tensors = {}
    for name, value in vit.state_dict().items():
        for new, old in renames.items():
            name = name.replace(new, old)
        tensors[name] = value
    assert tensors.keys() != vit.state_dict().keys()
    report = fit_backbone(contents_of(tensors), model.base)
    assert len(report.names("folded")) == 2 * 2 * 2  # blocks x scales x (weight, bias)
    torch.testing.assert_close(plain(model, images_of()), vit.forward_features(images_of())[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("container", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "base.", "backbone.", "module.base.", "model.encoder."])
def test_wrappings(tmp_path: Path, container: str | None, prefix: str) -> None:
    vit, model = make_vit(), make_model()
    tensors = {prefix + name: value for name, value in vit.state_dict().items()}
    path = write(tmp_path / "vit.pth", {container: tensors, "epoch": 3} if container else tensors)
    report = load_pretrained(path, model, choice="imagenet")
    assert torch.equal(model.base.blocks[1].mlp.fc2.weight, vit.blocks[1].mlp.fc2.weight)
    assert sorted(name.rpartition("head")[1] + name.rpartition("head")[2] for name in report.names("skipped")) == [
        "head.bias",
        "head.weight",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_types_of_number(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    vit, model = make_vit(img_size=(48, 48), init_values=0.3), make_model()
    path = write(tmp_path / f"vit.{suffix}", vit.to(dtype).state_dict())
    load_pretrained(path, model, choice="imagenet")
    assert model.base.norm.weight.dtype == torch.float32
    assert torch.equal(model.base.norm.weight, vit.norm.weight.float())


@pytest.mark.parametrize("layout", ["timm", "dinov2"])
@pytest.mark.parametrize("registers", [0, 1, 4])
def test_dinov2_with_patch_14_and_registers(layout: str, registers: int) -> None:
    """timm gives no position to class and register tokens, DINOv2 one to the class token."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=70,
        patch_size=14,
        num_classes=0,
        init_values=1e-1,
        reg_tokens=registers,
        no_embed_class=layout == "timm",
        **SIZES,
    )
    tensors = scatter(vit).state_dict()
    positions = tensors["pos_embed"][:, -25:]
    if layout == "dinov2":
        tensors["pos_embed"] = torch.cat([tensors["pos_embed"][:, :1], positions], dim=1)
        tensors["mask_token"] = torch.zeros(1, 32)
        if registers:
            tensors["register_tokens"] = tensors.pop("reg_token")
    model = make_model(img_size=(64, 48))
    report = fit_backbone(contents_of(tensors), model.base)
    first = torch.zeros(1, 1, 32) if layout == "timm" else tensors["pos_embed"][:, :1]
    expected = resize_position_embedding(torch.cat([first, positions], dim=1), (4, 3), (5, 5))
    assert torch.equal(model.base.pos_embed, expected)
    assert {"pos_embed", "patch_embed.proj.weight"} <= set(report.names("resized"))
    assert bool(registers) == any("reg" in name for name in report.names("skipped"))
    assert torch.equal(model.base.patch_embed_SAR.proj.weight, model.base.patch_embed.proj.weight)


def test_a_resampled_stem_sees_a_resized_patch_as_before() -> None:
    """FlexiViT's property: enlarging the patches and the stem alike leaves the embedding nearly as it was."""
    vit, model = make_vit(img_size=(28, 28), patch_size=14), make_model(img_size=(32, 32))
    fit_backbone(contents_of(vit.state_dict()), model.base)
    small = torch.nn.functional.interpolate(images_of(2, 2), size=(28, 28), mode="bicubic")
    large = torch.stack(
        [
            torch.nn.functional.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
            for patch in (small[..., :14, :14], small[..., 14:, 14:])
        ]
    )
    before = vit.patch_embed(small)[:, [0, 3]].transpose(0, 1)
    after = torch.stack([model.base.patch_embed.proj(patch).flatten(1) for patch in large])
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)


def test_deit_distilled_keeps_class_and_patches() -> None:
    deit = make_vit(name="deit_tiny_distilled_patch16_224", img_size=(64, 64))
    model = make_model()
    report = fit_backbone(contents_of(deit.state_dict()), model.base)
    kept = torch.cat([deit.pos_embed[:, :1], deit.pos_embed[:, 2:]], dim=1)
    assert torch.equal(model.base.pos_embed, resize_position_embedding(kept, (4, 2), (4, 4)))
    assert {"dist_token", "head_dist.weight"} <= set(report.names("skipped"))


def test_mae_without_head_and_with_decoder() -> None:
    vit, model = make_vit(), make_model()
    tensors = {name: value for name, value in vit.state_dict().items() if not name.startswith("head.")}
    tensors |= {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_pos_embed": torch.zeros(1, 9, 16),
        "decoder_embed.weight": torch.zeros(16, 32),
        "decoder_blocks.0.norm1.weight": torch.zeros(16),
        "decoder_blocks.0.norm1.bias": torch.zeros(16),
    }
    report = fit_backbone(contents_of(tensors), model.base)
    assert len(report.names("skipped")) == 5
    assert torch.equal(model.base.blocks[0].norm1.weight, vit.blocks[0].norm1.weight)


def test_a_linear_stem_of_flattened_patches() -> None:
    vit, model = make_vit(), make_model()
    tensors = vit.state_dict()
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].flatten(1)
    fit_backbone(contents_of(tensors), model.base)
    assert torch.equal(model.base.patch_embed.proj.weight, vit.patch_embed.proj.weight)


@pytest.mark.parametrize(
    "img_size, stride", [((64, 64), (16, 16)), ((96, 32), (16, 16)), ((64, 32), (12, 12)), ((64, 48), (16, 16))]
)
def test_other_grids_of_our_own_models(img_size: tuple, stride: tuple) -> None:
    source = make_model(img_size=(64, 32))
    model = make_model(img_size=img_size, stride=stride, seed=2)
    report = fit_backbone(contents_of(source.base.state_dict()), model.base)
    assert torch.equal(model.base.pos_embed, resize_position_embedding(source.base.pos_embed, model.base.grid_size, (4, 2)))
    assert report.names("resized") == ["pos_embed"]


def test_grids_of_our_own_models_are_not_taken_for_squares_with_the_class_token() -> None:
    """4 x 6 patches and the class token are 25 entries, a square."""
    source, model = make_model(img_size=(64, 96)), make_model(img_size=(64, 96), seed=2)
    fit_backbone(contents_of(source.base.state_dict()), model.base)
    assert torch.equal(model.base.pos_embed, source.base.pos_embed)


@pytest.mark.parametrize(
    "count, grid, expected",
    [
        (128, (16, 8), (16, 8)),
        (196, (16, 8), (14, 14)),
        (210, (16, 8), (21, 10)),
        (128, (16, 16), (16, 8)),
        (128, (8, 24), (8, 16)),
        (7, (4, 4), (7, 1)),
    ],
)
def test_guessed_grids(count: int, grid: tuple, expected: tuple) -> None:
    assert guess_grid(count, grid) == expected


def test_choices_take_what_they_say(tmp_path: Path) -> None:
    source = make_model(identities=7)
    path = write(tmp_path / "transformer_10.pth", source.state_dict())
    for choice, rest in (("imagenet", False), ("clip", True), ("finetune", True), ("self", True)):
        model = make_model(identities=7, seed=2)
        initial = {name: value.clone() for name, value in model.state_dict().items()}
        load_pretrained(path, model, choice=choice)
        loaded = model.state_dict()
        for name, value in source.state_dict().items():
            taken = name.startswith("base.") or (choice == "self" if name.startswith("classifier.") else rest)
            assert torch.equal(loaded[name], value if taken else initial[name]), (choice, name)


def test_none_reads_nothing() -> None:
    assert load_pretrained("there is no such file", make_model(), choice="none").entries == ()


def test_another_number_of_identities(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", make_model(identities=7).state_dict())
    model = make_model(identities=9, seed=2)
    report = load_pretrained(path, model, choice="self")
    assert report.names("skipped") == ["classifier.weight"]
    assert "[7, 32] in the file, [9, 32] in the model" in report.table()


def test_released_extras_and_our_training_state(tmp_path: Path) -> None:
    source = make_model(identities=7)
    released = {f"module.{name}": value for name, value in source.state_dict().items()}
    released |= {"module.base.fc.weight": torch.zeros(1000, 32), "module.base.fc.bias": torch.zeros(1000)}
    state = {"model": source.state_dict(), "epoch": 3, "optimizers": [{}], "random": [torch.zeros(3)]}
    for content in (released, state):
        model = make_model(seed=2)
        load_weights(write(tmp_path / "w.pth", content), model)
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def test_pretraining_without_size_token_and_neck(tmp_path: Path) -> None:
    source = make_model(sse=False).state_dict()
    path = write(tmp_path / "pre.pth", {name: value for name, value in source.items() if "bottleneck" not in name})
    report = load_pretrained(path, make_model(seed=2), choice="clip")
    assert {name.split(".")[0] for name in report.names("missing")} == {"wh_embed", "bottleneck"}


def test_the_part_that_another_model_shares(tmp_path: Path) -> None:
    """A model built on TransOSS with heads of its own gives its backbone; a neck for wider features is left."""
    source = make_model(identities=7)
    tensors = source.state_dict() | {
        "shared_head.weight": torch.zeros(32, 32),
        "bottleneck_specific.weight": torch.zeros(32),
        "bottleneck.weight": torch.zeros(64),
        "base.extra.weight": torch.zeros(3),
    }
    model = make_model(seed=2)
    report = load_pretrained(write(tmp_path / "sdf.pth", tensors), model, choice="clip")
    assert torch.equal(model.base.mie_embed, source.base.mie_embed)
    assert {"shared_head.weight", "bottleneck_specific.weight", "bottleneck.weight", "extra.weight"} <= set(
        report.names("skipped")
    )


def test_without_modality_embedding(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", make_model().state_dict())
    model = make_model(mie=False, sse=False, seed=2)
    assert "mie_embed" in load_weights(path, model).names("skipped")


def test_table_is_logged_once_and_accounts_for_every_tensor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vit, model = make_vit(img_size=(48, 48), init_values=0.1), make_model(identities=3)
    path = write(tmp_path / "vit.pth", vit.state_dict())
    with caplog.at_level(logging.INFO):
        report = load_pretrained(path, model, choice="clip")
    assert [record.getMessage().count("what became of the tensors") for record in caplog.records] == [1]
    for text in ("3 x 3 patches -> 4 x 2, bilinear", "from the optical stem", "a classifier head", "keeps its initial value"):
        assert text in caplog.text
    told = [entry.name for entry in report.entries if entry.state != "skipped"]
    assert sorted(told) == sorted(name.removeprefix("base.") for name in model.state_dict())


def test_too_little_of_the_backbone(tmp_path: Path) -> None:
    path = write(tmp_path / "shallow.pth", make_model(depth=1).base.state_dict())
    with pytest.raises(
        CheckpointError, match=r"shallow\.pth holds 8\d% of the backbone.*blocks\.1\..*MODEL\.PRETRAIN_PARTIAL True"
    ):
        load_pretrained(path, make_model(), choice="imagenet")
    model = make_model()
    report = load_pretrained(path, model, choice="imagenet", partial=True)
    assert 0.8 < backbone_share(report, model.base) < 0.9


@pytest.mark.parametrize(
    "options, message",
    [
        ({"embed_dim": 48}, r"width 48 and 2 blocks, the model of width 32 and 2 blocks; no MODEL\.TRANSFORMER_TYPE"),
        ({"depth": 3}, r"width 32 and 3 blocks, the model of width 32 and 2 blocks"),
        ({"embed_dim": 192, "num_heads": 3, "depth": 12}, r"set MODEL\.TRANSFORMER_TYPE vit_tiny_patch16_224_TransOSS"),
        ({"mlp_ratio": 2.0}, r"has blocks\.0\.mlp\.fc1\.weight of \[64, 32\] where the model has \[128, 32\]"),
    ],
    ids=str,
)
def test_another_architecture_is_named(tmp_path: Path, options: dict, message: str) -> None:
    path = write(tmp_path / "w.pth", make_model(**options).base.state_dict())
    with pytest.raises(CheckpointError, match=rf"w\.pth .*{message}"):
        load_pretrained(path, make_model(), choice="imagenet")


def spoil(change: dict) -> dict:
    return make_vit().state_dict() | change


@pytest.mark.parametrize(
    "tensors, message",
    [
        (lambda: nn.Linear(2, 2).state_dict(), "holds no Vision Transformer"),
        (lambda: spoil({"patch_embed.proj.weight": torch.zeros(32, 4, 16, 16)}), "for pictures of 4 bands"),
        (lambda: spoil({"norm.weight": torch.full((32,), torch.nan)}), r"values in norm\.weight that are no finite numbers"),
        (lambda: spoil({"blocks.0.attn.q_norm.weight": torch.ones(16)}), "another kind"),
        (lambda: spoil({"pos_embed": torch.zeros(1, 9, 16)}), r"has pos_embed of \[1, 9, 16\]"),
        (lambda: {name: value for name, value in spoil({}).items() if "patch_embed" not in name}, "without patch_embed"),
        (lambda: {name: value for name, value in spoil({}).items() if name != "pos_embed"}, "without pos_embed"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, tensors, message: str) -> None:
    path = write(tmp_path / "w.pth", tensors())
    with pytest.raises(CheckpointError, match=rf"w\.pth .*{message}"):
        load_pretrained(path, make_model(), choice="imagenet")


def test_start_as_configured(tmp_path: Path) -> None:
    path = write(tmp_path / "shallow.pth", make_model(depth=1).base.state_dict())

    def start(**keys) -> None:
        defaults = {"PRETRAIN_CHOICE": "imagenet", "PRETRAIN_PATH": str(path), "PRETRAIN_PARTIAL": False}
        build_start(SimpleNamespace(MODEL=SimpleNamespace(**{**defaults, **keys})), make_model())

    start(PRETRAIN_PARTIAL=True)
    start(PRETRAIN_CHOICE="none", PRETRAIN_PATH="")
    with pytest.raises(CheckpointError, match=r"set MODEL\.PRETRAIN_PARTIAL True"):
        start()
    with pytest.raises(UsageError, match=r"MODEL\.PRETRAIN_PATH is empty"):
        start(PRETRAIN_PATH="")


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(UsageError, match=r"MODEL\.PRETRAIN_CHOICE cannot be 'all'"):
        load_pretrained("w.pth", make_model(), choice="all")


def test_weights_to_test_with_must_be_whole(tmp_path: Path) -> None:
    whole = make_model().state_dict()
    for part in ("base.patch_embed_SAR.", "base.mie_embed", "base.wh_embed.", "bottleneck."):
        path = write(tmp_path / "w.pth", {name: value for name, value in whole.items() if not name.startswith(part)})
        with pytest.raises(CheckpointError, match=rf"w\.pth lacks .*{part.removeprefix('base.')}"):
            load_weights(path, make_model())


def test_timm_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = make_vit()
    monkeypatch.setattr(timm, "create_model", lambda name, **options: vit)
    model = make_model(mie=False, sse=False)
    load_pretrained("timm:vit_tiny_patch16_224", model, choice="imagenet")
    torch.testing.assert_close(plain(model, images_of()), vit.forward_features(images_of())[:, 0], atol=1e-5, rtol=1e-4)


def test_timm_offline_and_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"timm:vit_tiny_patch16_224 cannot be downloaded .*go online"):
        load_pretrained("timm:vit_tiny_patch16_224", make_model(), choice="imagenet")
    with pytest.raises(UsageError, match=r"MODEL\.PRETRAIN_PATH is timm:vit_none, and timm has no pretrained model"):
        load_pretrained("timm:vit_none", make_model(), choice="imagenet")
