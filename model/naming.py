"""A Vision Transformer's tensors by timm's names, whatever program named them, and which of two sets of them is taken.

Names are those of Hugging Face's transformers (ViT and DINOv2, up to version 4 and from 5 on) and of mmpretrain's
VisionTransformer. Joined are queries, keys and values that lie apart, and matrices of low rank (Hu et al. 2021, "LoRA", section
4.1) where the file tells by how much they count.

Legend: D embedding width, R rank.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from utils.checkpoint import find_state_dict, tensors_of
from utils.errors import CheckpointError, some

WRAPPED = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""What compilation and wrappers of blocks put inside names."""

AVERAGED = ("teacher", "ema", "averaged", "momentum_encoder", "target_encoder", "target_net")
"""Words in the names of the set that is an average of the other, in the order in which they are tried."""

HUGGING_FACE = {
    r"embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"embeddings\.position_embeddings$": "pos_embed",
    r"embeddings\.cls_token$": "cls_token",
    r"embeddings\.distillation_token$": "dist_token",
    r"embeddings\.register_tokens$": "reg_token",
    r"embeddings\.mask_token$": "mask_token",
    r"(?:encoder\.layer|layers)\.(\d+)\.(?:layernorm_before|norm1)\.": r"blocks.\1.norm1.",
    r"(?:encoder\.layer|layers)\.(\d+)\.(?:layernorm_after|norm2)\.": r"blocks.\1.norm2.",
    r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.)?((?:q|k|v)_proj|query|key|value)\.": r"blocks.\1.attn.\2.",
    r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:output\.dense|o_proj)\.": r"blocks.\1.attn.proj.",
    r"(?:encoder\.layer|layers)\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.": r"blocks.\1.mlp.fc1.",
    r"(?:encoder\.layer|layers)\.(\d+)\.(?:output\.dense|mlp\.fc2)\.": r"blocks.\1.mlp.fc2.",
    r"(?:encoder\.layer|layers)\.(\d+)\.layer_scale([12])\.lambda1$": r"blocks.\1.ls\2.gamma",
    r"(?:encoder\.layer|layers)\.(\d+)\.": r"blocks.\1.",
    r"layernorm\.": "norm.",
    r"pooler\.": "pre_logits.",
}
"""Start of a name behind its prefix -> timm's; the first that fits."""

MMPRETRAIN = {
    r"patch_embed\.projection\.": "patch_embed.proj.",
    r"layers\.(\d+)\.ln([12])\.": r"blocks.\1.norm\2.",
    r"layers\.(\d+)\.ffn\.layers\.0\.0\.": r"blocks.\1.mlp.fc1.",
    r"layers\.(\d+)\.ffn\.layers\.1\.": r"blocks.\1.mlp.fc2.",
    r"layers\.(\d+)\.(?:attn\.gamma1|ffn\.gamma2)\.weight$": r"blocks.\1.\g<0>",
    r"layers\.(\d+)\.": r"blocks.\1.",
    r"pre_norm\.": "norm_pre.",
    r"ln1\.": "norm.",
    r"ln2\.": "fc_norm.",
}

PROGRAMS = {"embeddings.patch_embeddings.projection.weight": HUGGING_FACE, "patch_embed.projection.weight": MMPRETRAIN}
"""End of the name of the stem's weight -> the names of the program that has it."""

_STEM = re.compile(r"(^|\.)(patch_embed\.proj|patch_embed\.projection|patch_embeddings\.projection)\.weight$")
_PARTS = {"query": 0, "q_proj": 0, "q": 0, "key": 1, "k_proj": 1, "k": 1, "value": 2, "v_proj": 2, "v": 2}
_APART = re.compile(rf"(.*\battn\.)({'|'.join(sorted(_PARTS, key=len, reverse=True))})\.(weight|bias)")
_QUANTISED = re.compile(r"\.(SCB|absmax|quant_state|qweight|qzeros|scales?|weight_scale|weight_format|zero_point)\b")
_LOW_RANK = re.compile(r"(.*)\.(?:lora_(A|B)|lora_(down|up))(?:\.\w+)??(?:\.weight)?")
_ROTARY = re.compile(r"(^|[._])(rope|rotary|rotary_emb|freqs_cos|freqs_sin|freqs_cis|inv_freq)([._]|$)")


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without `WRAPPED` inside their names."""
    return {re.sub("|".join(map(re.escape, WRAPPED)), "", name): value for name, value in tensors.items()}


def sets_of(content: Any) -> dict[str, Tensor]:
    """The tensors of a file; where several of its parts hold a Vision Transformer, of all these, each under its part's name."""
    parts = {str(key): tensors_of(value) for key, value in content.items()} if isinstance(content, Mapping) else {}
    parts = {key: tensors for key, tensors in parts.items() if any(map(_STEM.search, tensors))}
    if len(parts) < 2:
        return unwrapped(find_state_dict(content))
    return unwrapped({f"{key}.{name}": value for key, tensors in parts.items() for name, value in tensors.items()})


def choose_set(tensors: Mapping[str, Tensor], prefix: str = "") -> tuple[dict[str, Tensor], str]:
    """Of two sets of one network's tensors under two names, the one that is an average, and a sentence that says so.

    Args:
        tensors: of a file, by name.
        prefix: take the tensors whose names begin so instead, less the prefix.

    Returns:
        The tensors of the set with all that belongs to no set, and '' where there is one set only.

    Raises:
        CheckpointError: no name begins with `prefix`. The sentence wants the file's name before it.
    """
    if prefix:
        start = prefix if prefix.endswith(".") else f"{prefix}."
        if taken := {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}:
            return taken, ""
        found = some(sorted({name.partition(".")[0] for name in tensors}))
        raise CheckpointError(f"has no names that begin with {start}; they begin with {found}")
    stems = [name for name in tensors if _STEM.search(name)]
    averages = [name for word in AVERAGED for name in stems if re.search(rf"(^|[._]){word}([._]|$)", name)]
    if len(stems) < 2 or not averages:
        return dict(tensors), ""
    words = next(word for word in AVERAGED if re.search(rf"(^|[._]){word}([._]|$)", averages[0]))
    taken = _first_words(averages[0], words)
    others = sorted({name.split(".")[0] + "." for name in stems} - {taken}) if taken.count(".") == 1 else []
    others = others or [_first_words(name, "") for name in stems if not name.startswith(taken)]
    kept = {name: value for name, value in tensors.items() if name.startswith(taken) or not name.startswith(tuple(others))}
    return kept, f"of two sets of weights {taken}* is taken, the average of the other ({others[0]}*); --prefix chooses"


def _first_words(name: str, last: str) -> str:
    """The start of a name up to the part that holds the word `last`; the first part without one."""
    parts = name.split(".")
    place = next((index for index, part in enumerate(parts) if last and re.search(rf"(^|_){last}(_|$)", part)), 0)
    return ".".join(parts[: place + 1]) + "."


def plain_names(tensors: Mapping[str, Tensor], alpha: float | None = None) -> tuple[dict[str, Tensor], str]:
    """Tensors by timm's names, joined where they lie apart, and what no model here can take, in a sentence ('' for nothing).

    The sentence wants the file's name before it. `alpha` is of LoRA's matrices that have none of their own.
    """
    tensors, fault = _merge_low_rank(tensors, alpha)
    for read in (_translate, _join_queries, _join_biases):
        tensors = read(tensors)
    return dict(tensors), fault or _other_function(tensors)


def _translate(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for stem, program in PROGRAMS.items():
        found = next((name for name in tensors if name.endswith(stem)), None)
        if found is not None:
            prefix = found.removesuffix(stem)
            return {_timm_name(name, prefix, program): value for name, value in tensors.items()}
    return tensors


def _timm_name(name: str, prefix: str, program: Mapping[str, str]) -> str:
    if not name.startswith(prefix):
        return name if program is MMPRETRAIN else re.sub(r"^classifier\.", f"{prefix}head.", name)
    short = name.removeprefix(prefix)
    for theirs, ours in program.items():
        if re.match(theirs, short):
            renamed = re.sub(theirs, ours, short, count=1)
            gamma = re.fullmatch(r"(blocks\.\d+\.).*\.gamma([12])\.weight", renamed)
            return prefix + (f"{gamma[1]}ls{gamma[2]}.gamma" if gamma else renamed)
    return prefix + re.sub(r"^classifier\.", "head.", short)


def _join_queries(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Queries, keys and values that are three maps (D, D) as one of (3 D, D)."""
    apart: dict[tuple[str, str], dict[int, Tensor]] = {}
    joined: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if match := _APART.fullmatch(name):
            apart.setdefault((match[1], match[3]), {})[_PARTS[match[2]]] = value
        else:
            joined[name] = value
    for (start, kind), parts in apart.items():
        like = next(iter(parts.values()))
        if kind == "weight" and len(parts) < 3:
            return tensors
        joined[f"{start}qkv.{kind}"] = torch.cat([parts.get(place, torch.zeros_like(like)) for place in range(3)])
    return joined


def _join_biases(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The biases of queries and values (BEiT, EVA: keys have none) as that of the joined map."""
    joined = dict(tensors)
    for name, value in tensors.items():
        start = name.removesuffix("q_bias")
        if start != name and f"{start}v_bias" in tensors:
            keys = joined.pop(f"{start}k_bias", torch.zeros_like(value))
            joined[f"{start}qkv.bias"] = torch.cat([joined.pop(name), keys, joined.pop(f"{start}v_bias")])
    return joined


def _merge_low_rank(tensors: Mapping[str, Tensor], alpha: float | None) -> tuple[dict[str, Tensor], str]:
    """W + alpha / R * B A in place of W, A and B, where the file tells alpha."""
    found: dict[str, dict[str, Tensor]] = {}
    merged: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if match := _LOW_RANK.fullmatch(name):
            found.setdefault(match[1], {})[{"A": "A", "down": "A", "B": "B", "up": "B"}[match[2] or match[3]]] = value
        else:
            merged[name.replace(".base_layer.", ".")] = value
    for start, parts in found.items():
        own, weight = merged.pop(f"{start}.alpha", None), merged.get(f"{start}.weight")
        scale = alpha if own is None or own.numel() != 1 else float(own)
        if scale is None or weight is None or not _fits_low_rank(parts, weight):
            lacking = "without their alpha" if scale is None else "that fit no weight beside them"
            return merged, f"holds LoRA matrices ({start}) {lacking}; merge them into the weights where they were trained"
        change = parts["B"].double() @ parts["A"].double() * (scale / len(parts["A"]))
        merged[f"{start}.weight"] = (weight.double() + change).to(weight.dtype)
    return merged, ""


def _fits_low_rank(parts: Mapping[str, Tensor], weight: Tensor) -> bool:
    """Whether there are A (R, columns) and B (rows, R) for a weight (rows, columns)."""
    if len(parts) < 2 or any(matrix.dim() != 2 for matrix in (*parts.values(), weight)):
        return False
    (rank, columns), (rows, other) = parts["A"].shape, parts["B"].shape
    return rank == other and (rows, columns) == tuple(weight.shape)


def _other_function(tensors: Mapping[str, Tensor]) -> str:
    """Why the tensors are of another function than theirs alone would be; '' if they are not."""
    for name, value in tensors.items():
        if _QUANTISED.search(name):
            return f"holds quantised weights with scales ({name}); take them in float16 or float32"
        if name.endswith((".weight", "pos_embed")) and not value.is_floating_point():
            return f"holds whole numbers in {name}, quantised weights; take them in float16 or float32"
        if _ROTARY.search(name):
            return f"holds a Vision Transformer with rotary positions ({name}); take a plain one"
    return ""
