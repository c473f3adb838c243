"""The model that a configuration describes."""

from torch import nn

from model.features import fused_width
from model.heads import MarginHead, linear_head
from model.reid import ReIDModel
from model.resnet import ResNet50
from model.transoss import PATCH_SIZE, TransOSS
from utils.device import Precision
from utils.errors import UsageError

SIZES = {
    "vit_base_patch16_224_TransOSS": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_small_patch16_224_TransOSS": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_tiny_patch16_224_TransOSS": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_mini_patch16_224_TransOSS": {"embed_dim": 192, "depth": 6, "num_heads": 3},
}
"""MODEL.TRANSFORMER_TYPE -> sizes: those of ViT and DeiT, and half of tiny for demos on a CPU."""

SHORT_SEQUENCE = 300
"""Patches of which a batch's matrices of scores are small beside its other activations."""


def build_model(cfg, num_identities: int = 0) -> ReIDModel:
    """The model of MODEL.*, with random weights.

    Args:
        cfg: the configuration.
        num_identities: C of the classifier; 0 for a model that only extracts features.

    Raises:
        UsageError: no model has the name MODEL.TRANSFORMER_TYPE, its image holds no patch, or it lacks an embedding, a block
            or an objective asked for.
    """
    if cfg.MODEL.PAIR and (cfg.MODEL.DISENTANGLE or cfg.MODEL.STRUCT_LOSS_WEIGHT):
        raise UsageError(
            "MODEL.PAIR pre-trains the backbone of TransOSS, which SDF-Net starts from too; set MODEL.DISENTANGLE False and "
            "MODEL.STRUCT_LOSS_WEIGHT 0"
        )
    base = build_resnet(cfg) if cfg.MODEL.NAME == "resnet50" else build_transoss(cfg)
    fusion = cfg.MODEL.ABLATION_MODE if cfg.MODEL.DISENTANGLE else None
    width = fused_width(base.num_features, fusion)
    classifier = build_classifier(cfg, width, num_identities) if num_identities else None
    model = ReIDModel(base, classifier, neck=cfg.MODEL.NECK == "bnneck", fusion=fusion)
    # Processes that train together wait for the gradient of all that trains, so what the objective does not use is frozen.
    model.logit_scale.requires_grad_(cfg.MODEL.PAIR)
    if cfg.MODEL.PAIR or not cfg.MODEL.ID_LOSS_WEIGHT:
        for part in (model.neck, model.classifier):
            if part is not None:
                part.requires_grad_(False)
    return model


def choose_attention(model: ReIDModel, precision: Precision) -> None:
    """Have a network that learns attend as is fastest: by products in bfloat16 on a CPU, where they are few enough to keep."""
    on_cpu = precision.device_type == "cpu" and precision.dtype is not None
    if on_cpu and isinstance(model.base, TransOSS) and model.base.patch_embed.num_patches <= SHORT_SEQUENCE:
        model.base.attend_by_products()


def build_resnet(cfg) -> ResNet50:
    """The ResNet-50 baseline."""
    if cfg.MODEL.MIE or cfg.MODEL.SSE:
        raise UsageError(
            "MODEL.NAME resnet50 has neither a modality nor a size embedding; set MODEL.MIE False and MODEL.SSE False"
        )
    if cfg.MODEL.DISENTANGLE or cfg.MODEL.STRUCT_LOSS_WEIGHT:
        raise UsageError(
            "MODEL.NAME resnet50 has no tokens, which SDF-Net is about; set MODEL.DISENTANGLE False and "
            "MODEL.STRUCT_LOSS_WEIGHT 0"
        )
    if cfg.SOLVER.ACTIVATION_CHECKPOINTS:
        raise UsageError("SOLVER.ACTIVATION_CHECKPOINTS is for MODEL.NAME transformer; set it False for resnet50")
    return ResNet50(last_stride=cfg.MODEL.LAST_STRIDE)


def build_transoss(cfg) -> TransOSS:
    """The backbone of MODEL.TRANSFORMER_TYPE."""
    kind = cfg.MODEL.TRANSFORMER_TYPE
    if kind not in SIZES:
        raise UsageError(f"MODEL.TRANSFORMER_TYPE cannot be {kind!r}; it is one of {', '.join(SIZES)}")
    if list(cfg.INPUT.SIZE_TRAIN) != list(cfg.INPUT.SIZE_TEST):
        raise UsageError("INPUT.SIZE_TRAIN and INPUT.SIZE_TEST differ; the position embedding belongs to one size")
    if min(cfg.INPUT.SIZE_TRAIN) < PATCH_SIZE:
        raise UsageError(f"INPUT.SIZE_TRAIN {list(cfg.INPUT.SIZE_TRAIN)} holds no patch of {PATCH_SIZE} x {PATCH_SIZE} pixels")
    depth, structure_block = SIZES[kind]["depth"], cfg.MODEL.STRUCT_LAYER_INDEX if cfg.MODEL.STRUCT_LOSS_WEIGHT else 0
    if structure_block > depth:
        raise UsageError(
            f"MODEL.STRUCT_LAYER_INDEX is {structure_block}, and {kind} has {depth} blocks; name one of 1 to {depth}"
        )
    backbone = TransOSS(
        **SIZES[kind],
        img_size=tuple(cfg.INPUT.SIZE_TRAIN),
        stride=tuple(cfg.MODEL.STRIDE_SIZE),
        modality_embedding=cfg.MODEL.MIE,
        modality_scale=cfg.MODEL.MIE_COE,
        size_embedding=cfg.MODEL.SSE,
        drop_rate=cfg.MODEL.DROP_OUT,
        attn_drop_rate=cfg.MODEL.ATT_DROP_RATE,
        drop_path_rate=cfg.MODEL.DROP_PATH,
        position_init=cfg.MODEL.POSITION_INIT,
        specific_tokens=cfg.MODEL.DISENTANGLE,
        structure_block=structure_block,
    )
    backbone.set_grad_checkpointing(cfg.SOLVER.ACTIVATION_CHECKPOINTS)
    return backbone


def build_classifier(cfg, in_features: int, num_identities: int) -> nn.Module:
    """The identity classifier of MODEL.ID_LOSS_TYPE."""
    kind = cfg.MODEL.ID_LOSS_TYPE
    if kind == "softmax":
        return linear_head(in_features, num_identities)
    return MarginHead(kind, in_features, num_identities, scale=cfg.SOLVER.COSINE_SCALE, margin=cfg.SOLVER.COSINE_MARGIN)
