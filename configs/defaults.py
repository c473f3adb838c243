"""Every key of the configuration: name, default, meaning, and what it takes.

Keys of the released programs keep their name, place and default; the one default that differs is MODEL.DEVICE ('auto' instead
of 'cuda'). `docs/config.md` is this table for reading, made by `python -m tools.config_page`; `docs/faithful.md` tells what
else differs from the released programs.
"""

from copy import deepcopy
from functools import partial

from yacs.config import CfgNode

from configs.schema import Key

released, new = partial(Key, released=True), partial(Key, released=False)

SPLITS = ("query", "gallery", "O2S/query", "O2S/gallery", "S2O/query", "S2O/gallery")
VALIDATION_SPLITS = ("validation/query", "validation/gallery")

TABLE = (
    released("MODEL.DEVICE", "auto", "'auto' (a GPU where there is one), 'cpu', 'cuda', 'cuda:1' ..."),
    released("MODEL.DEVICE_ID", "0", "which GPU a single process takes when DEVICE names none"),
    released(
        "MODEL.NAME", "transformer", "TransOSS or a baseline; starts checkpoint names", choices=("transformer", "resnet50")
    ),
    released("MODEL.TRANSFORMER_TYPE", "None", "'vit_{base,small,tiny,mini}_patch16_224_TransOSS'"),
    released("MODEL.STRIDE_SIZE", [16, 16], "height and width; below the patch size 16: overlapping patches", low=1, length=2),
    released(
        "MODEL.PRETRAIN_CHOICE",
        "imagenet",
        "what to take of PRETRAIN_PATH; 'none' (or False): nothing",
        choices=("imagenet", "clip", "finetune", "self", "none"),
    ),
    released("MODEL.PRETRAIN_PATH", "", "a weights file to start training from, or timm:NAME; testing does not read it"),
    new("MODEL.PRETRAIN_PARTIAL", False, "True: weights for less than 90 % of the backbone will do"),
    new("MODEL.POSITION_INIT", "normal", "'sincos' learns sooner from scratch", choices=("normal", "sincos")),
    released("MODEL.DROP_PATH", 0.1, "stochastic depth of the last block; it rises linearly from 0", low=0, high=1),
    released("MODEL.DROP_OUT", 0.0, "dropout after projections and of the tokens that enter the first block", low=0, high=1),
    released("MODEL.ATT_DROP_RATE", 0.0, "dropout of attention weights", low=0, high=1),
    released("MODEL.MIE", False, "modality embedding"),
    released("MODEL.MIE_COE", 3.0, "factor of the modality embedding"),
    released("MODEL.SSE", False, "ship-size embedding"),
    released("MODEL.PAIR", False, "contrastive pre-training on pairs"),
    released("MODEL.NECK", "bnneck", "'no': features go to the classifier as they are", choices=("bnneck", "no")),
    released("MODEL.COS_LAYER", False, "no effect", unused="choose a margin head with MODEL.ID_LOSS_TYPE"),
    released("MODEL.LAST_STRIDE", 1, "of the last stage of resnet50", low=1, high=2),
    released(
        "MODEL.ID_LOSS_TYPE",
        "softmax",
        "'softmax': a linear classifier; others: a margin head",
        choices=("softmax", "arcface", "cosface", "amsoftmax", "circle"),
    ),
    released("MODEL.ID_LOSS_WEIGHT", 1.0, "weight of the identity loss", low=0),
    released("MODEL.IF_LABELSMOOTH", "on", "a tenth of the target goes to all identities", choices=("on", "off")),
    released("MODEL.METRIC_LOSS_TYPE", "triplet", "batch-hard triplet loss", choices=("triplet",)),
    released("MODEL.TRIPLET_LOSS_WEIGHT", 1.0, "weight of the triplet loss", low=0),
    released("MODEL.NO_MARGIN", False, "True: soft-margin triplet loss"),
    released("MODEL.IF_WITH_CENTER", "no", "'yes': centre loss", choices=("yes", "no")),
    released("MODEL.MODALITY_LOSS_WEIGHT", 0.1, "weight of the alignment of the two modalities; MOS 2.0, TransOSS 0", low=0),
    new("MODEL.MODALITY_LOSS_TYPE", "classwise", "'global': one alignment over the batch", choices=("classwise", "global")),
    new("MODEL.MODALITY_LOSS_SQUARED", False, "True: the paper's squared norms"),
    new("MODEL.DISENTANGLE", False, "SDF-Net: a class token that all images share and one of the image's modality"),
    new(
        "MODEL.ABLATION_MODE",
        "sum",
        "with DISENTANGLE: what is made of the two features",
        choices=("sum", "shared", "specific", "concat"),
    ),
    new("MODEL.ORTH_LOSS_WEIGHT", 0.1, "with DISENTANGLE: weight of the cosine between the two features; SDF-Net 10", low=0),
    new("MODEL.STRUCT_LOSS_WEIGHT", 0.0, "weight of the two modalities' difference in structure; SDF-Net 1", low=0),
    new("MODEL.STRUCT_LAYER_INDEX", 6, "the block, counted from 1, behind which structure is described", low=1),
    released("MODEL.DIST_TRAIN", False, "no effect", unused="start with torchrun to train on several devices"),
    released("INPUT.SIZE_TRAIN", [256, 128], "height and width of training images, pixels", low=1, length=2),
    released("INPUT.SIZE_TEST", [256, 128], "height and width of test images, pixels", low=1, length=2),
    released("INPUT.PROB", 0.5, "probability of a horizontal flip", low=0, high=1),
    released("INPUT.RE_PROB", 0.5, "probability of random erasing", low=0, high=1),
    new(
        "INPUT.COLOR_JITTER",
        0.0,
        "how far brightness, contrast and saturation of a training image may be from 1; SDF-Net 0.2",
        low=0,
        high=1,
    ),
    released("INPUT.PADDING", 10, "pixels around a training image before it is cropped at random", low=0),
    released("INPUT.PIXEL_MEAN", [0.485, 0.456, 0.406], "taken off each channel, of pixels in 0 .. 1", length=3),
    released("INPUT.PIXEL_STD", [0.229, 0.224, 0.225], "then divides each channel", low=1e-6, length=3),
    new(
        "INPUT.SAR_DENOISE",
        "percentile",
        "'percentile': MOS; 'max': TransOSS; others: docs/data.md",
        choices=("percentile", "max", "lee", "nlm", "clahe"),
    ),
    new("INPUT.SAR_BAND", "auto", "of SAR files of several bands: which, by number or polarisation; docs/data.md"),
    new("INPUT.SAR_LOW_PERCENT", 5.0, "percentile that becomes black", low=0, high=100),
    new("INPUT.SAR_HIGH_PERCENT", 100.0, "percentile that becomes white", low=0, high=100),
    new("INPUT.MAX_PIXELS", 2**21, "of a chip; a file that declares more holds no single ship and is refused", low=1),
    released("DATASETS.NAMES", "HOSS", "no effect", unused="what is read is the folder HOSS of DATASETS.ROOT_DIR"),
    released("DATASETS.ROOT_DIR", "./data", "the folder that holds HOSS/"),
    new(
        "DATASETS.VAL_FRACTION", 0.0, "share of training ships that choose the best weights; 0: test ships do", low=0, high=0.9
    ),
    new("DATASETS.PAIR_JOIN", "auto", "of OptiSar_Pair: docs/data.md", choices=("auto", "folder", "id")),
    new("DATASETS.QUERY_ADD_DIR", "", "generated samples of the query images"),
    new("DATASETS.GALLERY_ADD_DIR", "", "generated samples of the gallery images"),
    released(
        "DATALOADER.SAMPLER", "softmax", "'softmax_triplet': P identities x K images", choices=("softmax", "softmax_triplet")
    ),
    released("DATALOADER.NUM_INSTANCE", 16, "K, images of an identity in a batch", low=1),
    released("DATALOADER.NUM_WORKERS", 8, "at most; a worker a core is used", low=0),
    new(
        "DATALOADER.CACHE_MB",
        256,
        "memory for training chips as decoded and resized, so that each is decoded once a run; 0: each is, every time",
        low=0,
    ),
    released("SOLVER.OPTIMIZER_NAME", "Adam", "the optimiser", choices=("SGD", "Adam", "AdamW")),
    released("SOLVER.MAX_EPOCHS", 100, "epochs of training", low=1),
    released("SOLVER.BASE_LR", 3e-4, "learning rate after the warm-up", low=0),
    released("SOLVER.BIAS_LR_FACTOR", 1.0, "times BASE_LR: the rate of biases", low=0),
    released("SOLVER.LARGE_FC_LR", False, "True: the classifier learns at twice the rate"),
    released("SOLVER.MOMENTUM", 0.9, "of SGD", low=0, high=1),
    released("SOLVER.WEIGHT_DECAY", 0.0005, "of all but biases", low=0),
    released("SOLVER.WEIGHT_DECAY_BIAS", 0.0005, "of biases", low=0),
    new("SOLVER.SCHEDULER", "cosine", "'multistep': x GAMMA at each of STEPS", choices=("cosine", "multistep")),
    released("SOLVER.WARMUP_EPOCHS", 5, "epochs in which the rate rises from WARMUP_FACTOR x BASE_LR", low=0),
    released("SOLVER.WARMUP_FACTOR", 0.01, "times BASE_LR: the rate at the start", low=0),
    released(
        "SOLVER.WARMUP_METHOD", "linear", "of 'multistep'; 'constant' stays at WARMUP_FACTOR", choices=("linear", "constant")
    ),
    released("SOLVER.STEPS", [40, 70], "epochs at which 'multistep' lowers the rate", low=1),
    released("SOLVER.GAMMA", 0.1, "factor of 'multistep'", low=0),
    released("SOLVER.IMS_PER_BATCH", 64, "images in a training batch, over all processes", low=1),
    new("SOLVER.LOCAL_LOSSES", False, "True: of several processes each compares the images of its own share, as released"),
    new("SOLVER.IMS_PER_PASS", 0, "images of a batch through the network together; 0: all, -1: as many as fit", low=-1),
    new("SOLVER.SHARD", False, "True: of several processes each holds a part of the network and of the optimiser (FSDP2)"),
    new("SOLVER.ACTIVATION_CHECKPOINTS", False, "True: less memory, a third more time; of the bridge: BBDM.*"),
    released("SOLVER.MARGIN", 0.3, "of the triplet loss, unless MODEL.NO_MARGIN"),
    released("SOLVER.COSINE_MARGIN", 0.5, "margin of a margin head"),
    released("SOLVER.COSINE_SCALE", 30.0, "scale of a margin head"),
    released("SOLVER.CENTER_LR", 0.5, "learning rate of the class centres", low=0),
    released("SOLVER.CENTER_LOSS_WEIGHT", 0.0005, "weight of the centre loss", low=0),
    released("SOLVER.CHECKPOINT_PERIOD", 10, "epochs between checkpoints; -1: the best weights alone, and last.pth", low=-1),
    released("SOLVER.EVAL_PERIOD", 10, "epochs between evaluations", low=1),
    released("SOLVER.LOG_PERIOD", 100, "steps between log lines", low=1),
    released("SOLVER.SEED", 1234, "of everything that is drawn at random", low=0, high=2**63 - 1),
    new("SOLVER.DETERMINISTIC", False, "True: the same bits on the same GPU each time, where torch can; slower"),
    new(
        "SOLVER.AMP",
        "auto",
        "'auto': bf16 or fp16 on CUDA, off on a CPU; 'tf32': float32 with convolutions in TF32, torch's own default on a GPU",
        choices=("auto", "off", "tf32", "fp16", "bf16"),
    ),
    new(
        "SOLVER.COMPILE",
        "off",
        "torch.compile of the network; 'graphs': CUDA graphs too, for testing and sampling",
        choices=("off", "on", "graphs"),
    ),
    new("SOLVER.RESUME", "", "a last.pth to go on from; 'auto': the one of OUTPUT_DIR, if there is one"),
    new(
        "SOLVER.RESUME_ALLOW",
        [""],
        "keys, or 'data', in which a resumed run may differ although they say what is learned",
    ),
    new(
        "SOLVER.TRACKERS",
        [],
        "programs that show the metrics too, where their libraries are installed; offline",
        choices=("tensorboard", "wandb", "mlflow"),
    ),
    new("SOLVER.SAVE_MINUTES", 10.0, "at least so often last.pth is written; 0: only with checkpoints", low=0),
    released("TEST.WEIGHT", "", "the checkpoint to test"),
    new("TEST.FEATURE_STORE", "", "folder that keeps features for the next run with these images and weights; '': none"),
    new("TEST.AMP", "off", "precision of the network in tests; features are float32", choices=("off", "auto", "fp16", "bf16")),
    released("TEST.IMS_PER_BATCH", 128, "images in a test batch, on each process", low=1),
    released("TEST.NECK_FEAT", "after", "the feature that is compared: before or after the neck", choices=("before", "after")),
    released("TEST.FEAT_NORM", "yes", "L2-normalise features", choices=("yes", "no")),
    new("TEST.FLIP", False, "True: the mean feature of an image and its mirror"),
    new("TEST.QUERY_EXPANSION", 0, "nearest gallery images that join each query's feature; 0: none", low=0),
    new("TEST.QUERY_EXPANSION_ALPHA", 0.0, "they weigh their cosine to this power; 0: as much as the query", low=0),
    released("TEST.RE_RANKING", False, "k-reciprocal re-ranking, optical and SAR queries apart"),
    new("TEST.RE_RANKING_K1", 50, "neighbours for reciprocity", low=1),
    new("TEST.RE_RANKING_K2", 15, "neighbours that are averaged", low=1),
    new("TEST.RE_RANKING_LAMBDA", 0.3, "share of the plain distance", low=0, high=1),
    new("TEST.RANKING_MEMORY", 1.0, "GiB of distances that ranking and re-ranking hold at a time", low=0.001),
    new("TEST.FUSION_SAMPLES", 0, "K, generated samples of an image that fusion takes, the first ones; 0: all", low=0),
    new(
        "TEST.GENERATED_SIZE",
        "source",
        "whose size triple a generated picture has; 'file': its own, as released",
        choices=("source", "file"),
    ),
    new("TEST.FUSION_TAU", 0.02, "weight of generated features", low=0, high=1),
    new(
        "TEST.COMMON_SPACE",
        "off",
        "space fitted to training ships in which features are compared: docs/fusion.md",
        choices=("off", "centre", "ridge", "lda", "cca"),
    ),
    new("TEST.COMMON_SPACE_SHRINKAGE", 0.01, "share of its mean variance that a covariance gains", low=1e-6),
    new("TEST.COMMON_SPACE_DIMENSIONS", 64, "directions of the space; 0: all", low=0),
    new(
        "TEST.COMMON_SPACE_DIR",
        "",
        "folder that holds HOSS/ of further ships, whose training chips the space is fitted to as well",
    ),
    new("TEST.SAME_MODALITY_GALLERY", True, "False: images of the query's own modality leave its gallery"),
    new("TEST.REPORT", True, "a page, report.html, at the end of a training or a test; False: none"),
    released("TEST.DIST_MAT", "dist_mat.npy", "no effect", unused="distances are not kept whole"),
    released("TEST.EVAL", False, "no effect", unused="evaluation during training follows SOLVER.EVAL_PERIOD"),
    new("BBDM.PAIRS", "registered", "of PAIRS_DIR, or all optical x SAR views of a ship", choices=("registered", "hoss")),
    new("BBDM.PAIRS_DIR", "", "a folder for each modality (opt..., sar...; or A, B), perhaps under train/ and val/"),
    new("BBDM.HOLD_OUT_EVERY", 0, "every N-th place (text before the first '_' of a name) validates; 0: none", low=0),
    new("BBDM.IMAGE_SIZE", [256, 256], "height and width of pictures, pixels", low=1, length=2),
    new("BBDM.CROP", False, "True: random crops of IMAGE_SIZE from registered pairs; False: resize"),
    new("BBDM.FLIP", True, "half of the training pairs are mirrored"),
    # Bridge
    new("BBDM.SPACE", "pixel", "'latent': between latents of the first stage", choices=("pixel", "latent")),
    new(
        "BBDM.CONDITION",
        "auto",
        "what the network sees beside x_t, see docs/bridge.md; 'auto': y in pixels, none in latents",
        choices=("auto", "none", "y", "first_stage", "rescaler"),
    ),
    new("BBDM.OBJECTIVE", "grad", "what the network estimates", choices=("grad", "noise", "ysubx")),
    new("BBDM.SCHEDULE", "linear", "how the optical share grows with the time step", choices=("linear", "sin")),
    new("BBDM.NUM_TIMESTEPS", 1000, "time steps of the bridge", low=3),
    new("BBDM.MAX_VARIANCE", 1.0, "factor of the bridge's variance", low=1e-6),
    new("BBDM.LOSS", "l1", "of the estimate", choices=("l1", "l2")),
    # Network
    new("BBDM.WIDTH", 128, "channels of the first level; a multiple of 32", low=1),
    new("BBDM.MULTIPLIERS", [1, 4, 8], "times WIDTH: channels of each level, each half as large as the one before", low=1),
    new("BBDM.BLOCKS", 2, "residual blocks of a level", low=1),
    new("BBDM.ATTENTION_FACTORS", [8, 16, 32], "downsampling at which blocks attend, beside the middle one", low=1),
    new("BBDM.HEAD_WIDTH", 64, "channels of an attention head", low=1),
    new("BBDM.DROPOUT", 0.0, "of residual blocks", low=0, high=0.99),
    new("BBDM.ACTIVATION_CHECKPOINTS", False, "True: less memory, a third more time"),
    # First stage
    new("BBDM.FIRST_STAGE", "", "its checkpoint; '' where BBDM.WEIGHT holds it (published BBDM files)"),
    new("BBDM.FIRST_STAGE_WIDTH", 128, "channels of its first level; a multiple of 32", low=1),
    new("BBDM.FIRST_STAGE_MULTIPLIERS", [1, 2, 4], "times its width: channels of each level", low=1),
    new("BBDM.FIRST_STAGE_BLOCKS", 2, "residual blocks of a level", low=1),
    new("BBDM.FIRST_STAGE_CODES", 8192, "entries of the codebook", low=1),
    new("BBDM.FIRST_STAGE_CODE_WIDTH", 3, "channels of an entry, and of a latent", low=1),
    new("BBDM.FIRST_STAGE_ATTENTION", [0], "sides, of a picture of 256, at which its levels attend; 0: none", low=0),
    new("BBDM.LATENT_BEFORE_QUANT_CONV", False, "True: latents before quant_conv instead of after"),
    new("BBDM.NORMALISE_LATENTS", False, "True: by each channel's mean and deviation over the training pairs"),
    new("BBDM.KEEP_LATENTS", True, "the first stage sees each training picture once; False: at every step, as released"),
    # Training
    new("BBDM.PRETRAINED", "", "a bridge to start from"),
    new("BBDM.FEATURE_WEIGHT", 0.0, "of a term that compares estimates with real SAR in a ReID network's features", low=0),
    new("BBDM.FEATURE_NETWORK", "", "weights of that network, which describe themselves"),
    new("BBDM.FEATURE_UNTIL", 0.5, "largest m_t at which the term looks at an estimate", low=0, high=1),
    new("BBDM.ACCUMULATION", 2, "batches to an optimiser step", low=1),
    new("BBDM.CLIP_GRADIENT", 0.0, "largest norm of the gradient; 0: any", low=0),
    new("BBDM.PLATEAU_FACTOR", 0.5, "of the learning rate where the loss stays", low=0.01, high=0.99),
    new("BBDM.PLATEAU_PATIENCE", 3000, "optimiser steps without a lower loss before that", low=0),
    new("BBDM.PLATEAU_COOLDOWN", 3000, "optimiser steps after it in which none count", low=0),
    new("BBDM.PLATEAU_THRESHOLD", 1e-4, "by which a loss is lower, as a share", low=0),
    new("BBDM.PLATEAU_MIN_LR", 5e-7, "lowest learning rate", low=0),
    new("BBDM.EMA_DECAY", 0.995, "share of the average that an update keeps", low=0, high=1),
    new("BBDM.EMA_PERIOD", 8, "optimiser steps between updates of the average", low=1),
    new("BBDM.EMA_START", 30000, "batches; before it the average copies the weights", low=0),
    new("BBDM.GRID_PERIOD", 10, "epochs between pictures of optical, SAR and generated side by side; 0: none", low=0),
    # Sampling
    new("BBDM.WEIGHT", "", "the bridge to sample from"),
    new("BBDM.SPLITS", list(SPLITS), "whose optical chips are translated", choices=(*SPLITS, *VALIDATION_SPLITS)),
    new("BBDM.SAMPLE_NUM", 5, "K, samples of a chip", low=1),
    new("BBDM.SAMPLE_STEP", 200, "network calls of a sample; 0: all NUM_TIMESTEPS, one by one", low=0),
    new("BBDM.SAMPLER", "released", "see docs/bridge.md", choices=("released", "few_step")),
    new("BBDM.ETA", 1.0, "noise of the released sampler", low=0, high=1),
    new("BBDM.ORDER", 2, "of the few-step sampler", low=1, high=3),
    new("BBDM.CLIP", False, "True: clamp estimates of the SAR picture to [-1, 1]"),
    new("BBDM.GREY", False, "True: a sample's three bands become their mean, as a real SAR picture's are equal"),
    new("BBDM.SAVED_SIZE", "chip", "of a sample: its chip's; 'picture': IMAGE_SIZE, as released", choices=("chip", "picture")),
    new("BBDM.SAMPLE_BATCH", 16, "samples that go through a GPU together", low=1),
    # Evaluation
    new("BBDM.FID_WEIGHTS", "", "torch-fidelity's Inception v3; '': a Frechet distance in the evaluation's feature space"),
    new("BBDM.LPIPS_WEIGHTS", "", "torchvision's AlexNet or VGG-16; '': no LPIPS"),
    released("OUTPUT_DIR", "", "the folder that a run writes to"),
)

KEYS = {key.name: key for key in TABLE}
"""Every key by its dotted name."""


def default_cfg() -> CfgNode:
    """A fresh, mutable configuration that holds every key at its default."""
    cfg = CfgNode()
    for key in KEYS.values():
        section, _, name = key.name.rpartition(".")
        node = cfg.setdefault(section, CfgNode()) if section else cfg
        node[name] = deepcopy(key.default)
    return cfg
