"""Weights under other programs' names compute what they computed there, or are refused by name."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.contents import contents_of, read_contents
from model.pretrained import fit_backbone, load_pretrained, load_weights
from tests.test_pretrained import images_of, make_model, make_vit, plain, write
from tools.convert_weights import convert
from tools.inspect_weights import inspect
from utils.checkpoint import load_state_dict
from utils.errors import CheckpointError

HUGGING_FACE = {
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token",
    "attn.proj.": "attention.output.dense.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
    "blocks.": "encoder.layer.",
}
HUGGING_FACE_5 = HUGGING_FACE | {
    "attn.proj.": "attention.o_proj.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
    "blocks.": "layers.",
}
DINOV2 = HUGGING_FACE | {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
MMPRETRAIN = {
    "patch_embed.proj.": "patch_embed.projection.",
    "norm1.": "ln1.",
    "norm2.": "ln2.",
    "mlp.fc1.": "ffn.layers.0.0.",
    "mlp.fc2.": "ffn.layers.1.",
    "ls1.gamma": "attn.gamma1.weight",
    "ls2.gamma": "ffn.gamma2.weight",
    "blocks.": "layers.",
}
APART = {4: ("attention.attention.query", "attention.attention.key", "attention.attention.value")}
APART |= {5: ("attention.q_proj", "attention.k_proj", "attention.v_proj")}


def renamed(tensors: dict[str, Tensor], names: dict[str, str], prefix: str, apart: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """timm's tensors as another program names them."""
    theirs = {}
    for name, value in tensors.items():
        if re.match(r"norm\.", name):
            name = name.replace("norm.", "ln1." if names is MMPRETRAIN else "layernorm.")
        elif not name.startswith("head."):
            for ours, other in names.items():
                name = name.replace(ours, other)
        if apart and "attn.qkv." in name:
            theirs |= {prefix + name.replace("attn.qkv", word): part for word, part in zip(apart, value.chunk(3))}
        else:
            theirs[name.replace("head.", "classifier.") if name.startswith("head.") else prefix + name] = value
    return theirs


@pytest.mark.parametrize(
    ("names", "prefix", "apart", "options"),
    [
        (HUGGING_FACE, "vit.", APART[4], {}),
        (HUGGING_FACE_5, "vit.", APART[5], {}),
        (HUGGING_FACE, "", APART[4], {}),
        (DINOV2, "dinov2.", APART[4], {"init_values": 0.3}),
        (MMPRETRAIN, "backbone.", (), {"init_values": 0.3}),
    ],
)
def test_other_programs_names_are_the_same_function(tmp_path: Path, names, prefix, apart, options) -> None:
    vit, model = make_vit(**options), make_model(mie=False, sse=False)
    tensors = renamed(vit.state_dict(), names, prefix, apart)
    assert not set(tensors) & {"patch_embed.proj.weight", "blocks.0.norm1.weight"}
    report = load_pretrained(write(tmp_path / "w.pth", tensors), model, choice="imagenet")
    assert all("head" in name or "classifier" in name for name in report.names("skipped"))
    torch.testing.assert_close(plain(model, images_of()), vit.forward_features(images_of())[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keys", [False, True])
def test_biases_of_queries_and_values_are_joined(keys: bool) -> None:
    vit, tensors = make_vit(), {}
    for name, value in vit.state_dict().items():
        if name.endswith("attn.qkv.bias"):
            parts = value.normal_().chunk(3)
            parts[1].zero_()
            start = name.removesuffix("qkv.bias")
            tensors |= {f"{start}q_bias": parts[0], f"{start}v_bias": parts[2]} | ({f"{start}k_bias": parts[1]} if keys else {})
        else:
            tensors[name] = value
    model = make_model(mie=False, sse=False)
    fit_backbone(contents_of(tensors), model.base)
    torch.testing.assert_close(plain(model, images_of()), vit.forward_features(images_of())[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", ["peft", "down and up", "alpha of the file"])
def test_matrices_of_low_rank_are_merged_where_their_alpha_is_known(form: str) -> None:
    vit, generator = make_vit(), torch.Generator().manual_seed(1)
    tensors = {f"base_model.model.{name}": value.clone() for name, value in vit.state_dict().items()}
    start, content = "base_model.model.blocks.0.attn.qkv", {}
    a, b = torch.randn(2, 32, generator=generator), torch.randn(96, 2, generator=generator)
    names = (
        (".lora_down.weight", ".lora_up.weight")
        if form == "down and up"
        else (".lora_A.default.weight", ".lora_B.default.weight")
    )
    changed = tensors | {f"{start}{names[0]}": a, f"{start}{names[1]}": b}
    if form == "peft":
        changed[f"{start}.base_layer.weight"], changed[f"{start}.base_layer.bias"] = (
            changed.pop(f"{start}.weight"),
            changed.pop(f"{start}.bias"),
        )
    if form == "alpha of the file":
        content = {"state_dict": changed, "lora_alpha": 6}
    else:
        changed[f"{start}.alpha"] = torch.tensor(6.0)
    vit.blocks[0].attn.qkv.weight.data += 3 * b @ a
    model = make_model(mie=False, sse=False)
    fit_backbone(contents_of(content or changed), model.base)
    torch.testing.assert_close(model.base.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)
    changed.pop(f"{start}.alpha", None)
    assert "LoRA matrices" in contents_of(changed).fault and "alpha" in contents_of(changed).fault


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ({"blocks.0.attn.qkv.SCB": torch.ones(96)}, "blocks.0.attn.qkv.SCB"),
        ({"blocks.0.mlp.fc1.weight": torch.zeros(128, 32, dtype=torch.int8)}, "whole numbers in blocks.0.mlp.fc1.weight"),
        ({"rope.freqs_cos": torch.ones(9)}, "rotary positions (rope.freqs_cos)"),
        ({"blocks.1.attn.inner_attn_ln.weight": torch.ones(32)}, "blocks.1.attn.inner_attn_ln.weight, which"),
        ({"blocks.1.mlp.w12.weight": torch.ones(32, 32)}, "blocks.1.mlp.w12.weight, which"),
        (
            {"blocks.0.attn.proj.lora_A": torch.ones(2, 32), "blocks.0.attn.proj.lora_B": torch.ones(32, 2)},
            "blocks.0.attn.proj",
        ),
    ],
)
def test_what_the_model_lacks_is_refused_by_name(tmp_path: Path, extra, word: str) -> None:
    path = write(tmp_path / "w.pth", make_vit().state_dict() | extra)
    for refuse in (lambda: load_pretrained(path, make_model(), choice="imagenet"), lambda: inspect(path)):
        with pytest.raises(CheckpointError, match=rf"w\.pth .*{re.escape(word)}"):
            refuse()


def two(kind: str, raw: dict, average: dict) -> dict:
    """A file of two sets."""
    named = {
        "DINO": {"student": {f"module.backbone.{k}": v for k, v in raw.items()}}
        | {"teacher": {f"backbone.{k}": v for k, v in average.items()}, "epoch": 3},
        "timm": {"state_dict": raw, "state_dict_ema": average},
        "EMA": {"model": raw, "model_ema": average, "epoch": 5},
        "MoCo": {"state_dict": {f"module.base_encoder.{k}": v for k, v in raw.items()}},
        "mmengine": {"state_dict": {f"backbone.{k}": v for k, v in raw.items()}},
    }
    named["MoCo"]["state_dict"] |= {f"module.momentum_encoder.{k}": v for k, v in average.items()}
    named["mmengine"]["state_dict"] |= {f"ema_backbone.{k}": v for k, v in average.items()}
    return named[kind]


@pytest.mark.parametrize(
    ("kind", "prefix", "taken"),
    [
        ("DINO", "student.backbone", "teacher."),
        ("timm", "state_dict", "state_dict_ema."),
        ("EMA", "model", "model_ema."),
        ("MoCo", "base_encoder", "momentum_encoder."),
        ("mmengine", "backbone", "ema_backbone."),
    ],
)
def test_of_two_sets_the_average_is_taken_and_said_and_the_other_can_be_chosen(
    tmp_path: Path, kind, prefix, taken, caplog
) -> None:
    raw, average = make_vit().state_dict(), {name: value + 1 for name, value in make_vit().state_dict().items()}
    path = write(tmp_path / "w.pth", two(kind, raw, average))
    model = make_model()
    with caplog.at_level("INFO"):
        load_pretrained(path, model, choice="imagenet")
    assert torch.equal(model.base.blocks[1].mlp.fc2.weight, average["blocks.1.mlp.fc2.weight"])
    assert f"of two sets of weights {taken}* is taken" in caplog.text
    assert torch.equal(read_contents(path, prefix).backbone["norm.weight"], raw["norm.weight"])
    convert(Path(path), tmp_path / "other.pth", "own", prefix)
    assert torch.equal(load_state_dict(tmp_path / "other.pth")["norm.weight"], raw["norm.weight"])
    with pytest.raises(CheckpointError, match=r"w\.pth has no names that begin with nobody\."):
        read_contents(path, "nobody")


def test_wrappers_inside_names_and_counts_of_batches_are_nothing(tmp_path: Path) -> None:
    source, model = make_model(), make_model(seed=4)
    tensors = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    inside = {name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module.") for name in tensors}
    assert inside - tensors.keys()
    wrapped = {
        name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module.").replace("base.", "base._orig_mod."): value
        for name, value in tensors.items()
    }
    load_weights(write(tmp_path / "w.pth", wrapped), model)
    assert torch.equal(model.base.blocks[1].mlp.fc2.weight, source.base.blocks[1].mlp.fc2.weight)
