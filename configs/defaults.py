"""Every key of the configuration, with its default.

Keys of the released programs keep their name, place and default; the one default that differs is MODEL.DEVICE ('auto' instead
of 'cuda'). `docs/faithful.md` tells what else differs from them.
"""

import math

from yacs.config import CfgNode

FLAGS = {
    "MODEL.IF_LABELSMOOTH": ("on", "off"),
    "MODEL.IF_WITH_CENTER": ("yes", "no"),
    "TEST.FEAT_NORM": ("yes", "no"),
}
"""Keys that the released programs spell with words: (word for true, word for false)."""

CHOICES = {
    "MODEL.ID_LOSS_TYPE": ("softmax", "arcface", "cosface", "amsoftmax", "circle"),
    "MODEL.METRIC_LOSS_TYPE": ("triplet",),
    "MODEL.MODALITY_LOSS_TYPE": ("classwise", "global"),
    "MODEL.NAME": ("transformer", "resnet50"),
    "MODEL.NECK": ("bnneck", "no"),
    "MODEL.POSITION_INIT": ("normal", "sincos"),
    "MODEL.PRETRAIN_CHOICE": ("imagenet", "clip", "finetune", "self", "none"),
    "BBDM.LOSS": ("l1", "l2"),
    "BBDM.OBJECTIVE": ("grad", "noise", "ysubx"),
    "BBDM.PAIRS": ("registered", "hoss"),
    "BBDM.SAMPLER": ("released", "few_step"),
    "BBDM.SCHEDULE": ("linear", "sin"),
    "BBDM.SPACE": ("pixel", "latent"),
    "DATALOADER.SAMPLER": ("softmax", "softmax_triplet"),
    "INPUT.SAR_DENOISE": ("percentile", "max", "lee", "nlm", "clahe"),
    "SOLVER.AMP": ("auto", "off", "fp16", "bf16"),
    "SOLVER.OPTIMIZER_NAME": ("SGD", "Adam", "AdamW"),
    "SOLVER.SCHEDULER": ("cosine", "multistep"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "TEST.NECK_FEAT": ("before", "after"),
}
"""Keys that take one of a few words."""

RANGES = {
    "DATALOADER.NUM_INSTANCE": (1, math.inf),
    "DATALOADER.NUM_WORKERS": (0, math.inf),
    "DATASETS.VAL_FRACTION": (0, 0.9),
    "INPUT.PADDING": (0, math.inf),
    "INPUT.PROB": (0, 1),
    "INPUT.RE_PROB": (0, 1),
    "INPUT.SAR_HIGH_PERCENT": (0, 100),
    "INPUT.SAR_LOW_PERCENT": (0, 100),
    "MODEL.ATT_DROP_RATE": (0, 1),
    "MODEL.DROP_OUT": (0, 1),
    "MODEL.DROP_PATH": (0, 1),
    "MODEL.ID_LOSS_WEIGHT": (0, math.inf),
    "MODEL.LAST_STRIDE": (1, 2),
    "MODEL.MODALITY_LOSS_WEIGHT": (0, math.inf),
    "MODEL.TRIPLET_LOSS_WEIGHT": (0, math.inf),
    "SOLVER.BASE_LR": (0, math.inf),
    "SOLVER.BIAS_LR_FACTOR": (0, math.inf),
    "SOLVER.CENTER_LOSS_WEIGHT": (0, math.inf),
    "SOLVER.CENTER_LR": (0, math.inf),
    "SOLVER.CHECKPOINT_PERIOD": (1, math.inf),
    "SOLVER.EVAL_PERIOD": (1, math.inf),
    "SOLVER.GAMMA": (0, math.inf),
    "SOLVER.IMS_PER_BATCH": (1, math.inf),
    "SOLVER.IMS_PER_PASS": (0, math.inf),
    "SOLVER.LOG_PERIOD": (1, math.inf),
    "SOLVER.MAX_EPOCHS": (1, math.inf),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.SEED": (0, 2**63 - 1),
    "SOLVER.WARMUP_EPOCHS": (0, math.inf),
    "SOLVER.WARMUP_FACTOR": (0, math.inf),
    "SOLVER.WEIGHT_DECAY": (0, math.inf),
    "SOLVER.WEIGHT_DECAY_BIAS": (0, math.inf),
    "TEST.FUSION_SAMPLES": (0, math.inf),
    "TEST.FUSION_TAU": (0, 1),
    "TEST.IMS_PER_BATCH": (1, math.inf),
    "TEST.QUERY_EXPANSION": (0, math.inf),
    "TEST.QUERY_EXPANSION_ALPHA": (0, math.inf),
    "TEST.RANKING_MEMORY": (0.001, math.inf),
    "TEST.RE_RANKING_K1": (1, math.inf),
    "TEST.RE_RANKING_K2": (1, math.inf),
    "TEST.RE_RANKING_LAMBDA": (0, 1),
    "BBDM.ACCUMULATION": (1, math.inf),
    "BBDM.BLOCKS": (1, math.inf),
    "BBDM.CLIP_GRADIENT": (0, math.inf),
    "BBDM.DROPOUT": (0, 0.99),
    "BBDM.EMA_DECAY": (0, 1),
    "BBDM.EMA_PERIOD": (1, math.inf),
    "BBDM.EMA_START": (0, math.inf),
    "BBDM.ETA": (0, 1),
    "BBDM.FIRST_STAGE_BLOCKS": (1, math.inf),
    "BBDM.FIRST_STAGE_CODES": (1, math.inf),
    "BBDM.FIRST_STAGE_CODE_WIDTH": (1, math.inf),
    "BBDM.GRID_PERIOD": (0, math.inf),
    "BBDM.HEAD_WIDTH": (1, math.inf),
    "BBDM.HOLD_OUT_EVERY": (0, math.inf),
    "BBDM.MAX_VARIANCE": (1e-6, math.inf),
    "BBDM.NUM_TIMESTEPS": (3, math.inf),
    "BBDM.ORDER": (1, 3),
    "BBDM.PLATEAU_COOLDOWN": (0, math.inf),
    "BBDM.PLATEAU_FACTOR": (0.01, 0.99),
    "BBDM.PLATEAU_MIN_LR": (0, math.inf),
    "BBDM.PLATEAU_PATIENCE": (0, math.inf),
    "BBDM.PLATEAU_THRESHOLD": (0, math.inf),
    "BBDM.SAMPLE_BATCH": (1, math.inf),
    "BBDM.SAMPLE_NUM": (1, math.inf),
}
"""Keys of a single number: the lowest and the highest value."""

UNUSED = {
    "DATASETS.NAMES": "what is read is the folder HOSS of DATASETS.ROOT_DIR",
    "MODEL.COS_LAYER": "choose a margin head with MODEL.ID_LOSS_TYPE",
    "MODEL.DIST_TRAIN": "start with torchrun to train on several devices",
    "TEST.DIST_MAT": "distances are not kept whole",
    "TEST.EVAL": "evaluation during training follows SOLVER.EVAL_PERIOD",
}
"""Released keys that are accepted and have no effect: why, or what to use instead."""


def default_cfg() -> CfgNode:
    """A fresh, mutable configuration that holds every key at its default."""
    cfg = CfgNode()
    cfg.MODEL = _model()
    cfg.INPUT = _input()
    cfg.DATASETS = _datasets()
    cfg.DATALOADER = _dataloader()
    cfg.SOLVER = _solver()
    cfg.TEST = _test()
    cfg.BBDM = _bbdm()
    cfg.OUTPUT_DIR = ""
    return cfg


def _model() -> CfgNode:
    node = CfgNode()
    node.DEVICE = "auto"  # 'auto' | 'cpu' | 'cuda' | 'cuda:1' ...
    node.DEVICE_ID = "0"  # which GPU a single process takes when DEVICE names none
    node.NAME = "transformer"  # TransOSS; or the baseline 'resnet50'; also the first part of checkpoint names
    node.TRANSFORMER_TYPE = "None"  # 'vit_{base,small,tiny,mini}_patch16_224_TransOSS'
    node.STRIDE_SIZE = [16, 16]  # below the patch size 16: overlapping patches
    node.PRETRAIN_CHOICE = "imagenet"  # what to take of PRETRAIN_PATH; 'none' (or False): nothing
    node.PRETRAIN_PATH = ""  # a weights file to start training from, or timm:NAME; testing does not read it
    node.PRETRAIN_PARTIAL = False  # True: weights for less than 90 % of the backbone will do
    node.POSITION_INIT = "normal"  # 'sincos' learns sooner from scratch; loaded weights replace either
    node.DROP_PATH = 0.1  # stochastic depth of the last block; it rises linearly from 0
    node.DROP_OUT = 0.0  # after projections and position embedding
    node.ATT_DROP_RATE = 0.0  # of attention weights
    node.MIE = False  # modality embedding
    node.MIE_COE = 3.0  # factor of the modality embedding
    node.SSE = False  # ship-size embedding
    node.PAIR = False  # contrastive pre-training on pairs
    node.NECK = "bnneck"  # 'no': features go to the classifier as they are
    node.COS_LAYER = False  # no effect
    node.LAST_STRIDE = 1  # of resnet50: 1 or 2
    node.ID_LOSS_TYPE = "softmax"  # linear classifier; or a margin head: 'arcface', 'cosface', 'amsoftmax', 'circle'
    node.ID_LOSS_WEIGHT = 1.0
    node.IF_LABELSMOOTH = "on"  # a tenth of the target goes to all identities
    node.METRIC_LOSS_TYPE = "triplet"  # batch-hard
    node.TRIPLET_LOSS_WEIGHT = 1.0
    node.NO_MARGIN = False  # True: soft-margin triplet
    node.IF_WITH_CENTER = "no"  # 'yes': centre loss
    node.MODALITY_LOSS_WEIGHT = 0.1  # of the alignment of the two modalities; MOS 2.0, TransOSS 0
    node.MODALITY_LOSS_TYPE = "classwise"  # 'global': one alignment over the batch
    node.MODALITY_LOSS_SQUARED = False  # True: the paper's squared norms
    node.DIST_TRAIN = False  # no effect
    return node


def _input() -> CfgNode:
    node = CfgNode()
    node.SIZE_TRAIN = [256, 128]  # height, width
    node.SIZE_TEST = [256, 128]
    node.PROB = 0.5  # horizontal flip
    node.RE_PROB = 0.5  # random erasing
    node.PADDING = 10  # pixels around a training image before it is cropped at random
    node.PIXEL_MEAN = [0.485, 0.456, 0.406]
    node.PIXEL_STD = [0.229, 0.224, 0.225]
    node.SAR_DENOISE = "percentile"  # 'percentile': MOS; 'max': TransOSS; 'lee', 'nlm', 'clahe': see datasets/sar.py
    node.SAR_LOW_PERCENT = 5.0  # percentile that becomes black
    node.SAR_HIGH_PERCENT = 100.0  # percentile that becomes white
    return node


def _datasets() -> CfgNode:
    node = CfgNode()
    node.NAMES = "HOSS"  # the data set; HOSS layout
    node.ROOT_DIR = "./data"  # the folder that holds HOSS/
    node.VAL_FRACTION = 0.0  # share of the training ships that choose the best weights; 0: the test split does
    node.QUERY_ADD_DIR = ""  # generated samples of the query images
    node.GALLERY_ADD_DIR = ""  # generated samples of the gallery images
    return node


def _dataloader() -> CfgNode:
    node = CfgNode()
    node.SAMPLER = "softmax"  # 'softmax_triplet': P identities x K images
    node.NUM_INSTANCE = 16  # K, images of an identity in a batch
    node.NUM_WORKERS = 8  # at most; a worker a core is used
    return node


def _solver() -> CfgNode:
    node = CfgNode()
    node.OPTIMIZER_NAME = "Adam"  # 'SGD', 'Adam' or 'AdamW'
    node.MAX_EPOCHS = 100
    node.BASE_LR = 3e-4
    node.BIAS_LR_FACTOR = 1  # of the biases' rate
    node.LARGE_FC_LR = False  # classifier at twice the rate
    node.MOMENTUM = 0.9  # of SGD
    node.WEIGHT_DECAY = 0.0005
    node.WEIGHT_DECAY_BIAS = 0.0005
    node.SCHEDULER = "cosine"  # or 'multistep': x GAMMA at each of STEPS
    node.WARMUP_EPOCHS = 5  # from WARMUP_FACTOR x BASE_LR
    node.WARMUP_FACTOR = 0.01
    node.WARMUP_METHOD = "linear"  # of 'multistep': or 'constant', at WARMUP_FACTOR; the cosine's is linear
    node.STEPS = [40, 70]  # epochs, of 'multistep'
    node.GAMMA = 0.1  # of 'multistep'
    node.IMS_PER_BATCH = 64  # images in a batch, over all processes
    node.IMS_PER_PASS = 0  # contrastive pre-training: images through the network together; 0: the whole batch
    node.MARGIN = 0.3  # of the triplet loss, unless MODEL.NO_MARGIN
    node.COSINE_MARGIN = 0.5  # of a margin head
    node.COSINE_SCALE = 30  # of a margin head
    node.CENTER_LR = 0.5  # of the class centres
    node.CENTER_LOSS_WEIGHT = 0.0005
    node.CHECKPOINT_PERIOD = 10  # epochs
    node.EVAL_PERIOD = 10  # epochs
    node.LOG_PERIOD = 100  # steps
    node.SEED = 1234
    node.DETERMINISTIC = False  # True: the same bits on the same GPU each time, where torch can; slower
    node.AMP = "auto"  # 'off', 'fp16', 'bf16'; 'auto' is bf16 or fp16 on CUDA and off on a CPU
    node.RESUME = ""  # a last.pth to go on from
    return node


def _test() -> CfgNode:
    node = CfgNode()
    node.WEIGHT = ""  # the checkpoint to test
    node.FEATURE_STORE = ""  # folder that keeps features for the next run with these images and weights; '': none
    node.IMS_PER_BATCH = 128  # images in a batch, on each process
    node.NECK_FEAT = "after"  # the feature that is compared: 'before' or 'after' the neck
    node.FEAT_NORM = "yes"  # L2-normalise features
    node.FLIP = False  # True: the mean feature of an image and its mirror
    node.QUERY_EXPANSION = 0  # nearest gallery images that join each query's feature; 0: none
    node.QUERY_EXPANSION_ALPHA = 0.0  # they weigh their cosine to this power; 0: as much as the query
    node.RE_RANKING = False  # k-reciprocal re-ranking, optical and SAR queries apart
    node.RE_RANKING_K1 = 50  # neighbours for reciprocity
    node.RE_RANKING_K2 = 15  # neighbours that are averaged
    node.RE_RANKING_LAMBDA = 0.3  # share of the plain distance
    node.RANKING_MEMORY = 1.0  # GiB of distances that ranking and re-ranking hold at a time
    node.FUSION_SAMPLES = 0  # K, generated samples of an image that fusion takes, the first ones; 0: all
    node.FUSION_TAU = 0.02  # weight of generated features
    node.SAME_MODALITY_GALLERY = True  # False: images of the query's own modality leave its gallery
    node.DIST_MAT = "dist_mat.npy"  # no effect
    node.EVAL = False  # no effect
    return node


def _bbdm() -> CfgNode:
    """The bridge. It also reads SOLVER.{MAX_EPOCHS, BASE_LR, IMS_PER_BATCH, ..._PERIOD, SEED, AMP, RESUME} and OUTPUT_DIR."""
    node = CfgNode()
    # pairs
    node.PAIRS = "registered"  # 'registered': of PAIRS_DIR; 'hoss': every optical x SAR view of a training ship
    node.PAIRS_DIR = ""  # a folder for each modality (opt..., sar...; or A, B), perhaps under train/ and val/
    node.HOLD_OUT_EVERY = 0  # every N-th place (text before the first '_' of a name) validates; 0: none
    node.IMAGE_SIZE = [256, 256]  # height, width
    node.CROP = False  # True: random crops of IMAGE_SIZE from registered pairs; False: resize
    node.FLIP = True
    # bridge
    node.SPACE = "pixel"  # 'latent': between latents of the first stage
    node.OBJECTIVE = "grad"
    node.SCHEDULE = "linear"
    node.NUM_TIMESTEPS = 1000
    node.MAX_VARIANCE = 1.0
    node.LOSS = "l1"
    # network
    node.WIDTH = 128
    node.MULTIPLIERS = [1, 4, 8]
    node.BLOCKS = 2
    node.ATTENTION_FACTORS = [8, 16, 32]  # downsampling factors at which blocks attend; the middle block always does
    node.HEAD_WIDTH = 64
    node.DROPOUT = 0.0
    node.ACTIVATION_CHECKPOINTS = False  # less memory, a third more time
    # first stage
    node.FIRST_STAGE = ""  # its checkpoint; '' where BBDM.WEIGHT holds it (published BBDM files)
    node.FIRST_STAGE_WIDTH = 128
    node.FIRST_STAGE_MULTIPLIERS = [1, 2, 4]
    node.FIRST_STAGE_BLOCKS = 2
    node.FIRST_STAGE_CODES = 8192
    node.FIRST_STAGE_CODE_WIDTH = 3
    # training
    node.PRETRAINED = ""  # a bridge to start from
    node.ACCUMULATION = 2  # batches to an optimiser step
    node.CLIP_GRADIENT = 0.0  # largest norm; 0: none
    node.PLATEAU_FACTOR = 0.5
    node.PLATEAU_PATIENCE = 3000  # optimiser steps
    node.PLATEAU_COOLDOWN = 3000
    node.PLATEAU_THRESHOLD = 1e-4
    node.PLATEAU_MIN_LR = 5e-7
    node.EMA_DECAY = 0.995
    node.EMA_PERIOD = 8  # optimiser steps
    node.EMA_START = 30000  # batches; before it the average copies the weights
    node.GRID_PERIOD = 10  # epochs between pictures of optical | SAR | generated; 0: none
    # sampling
    node.WEIGHT = ""
    node.SPLITS = ["query", "gallery", "O2S/query", "O2S/gallery", "S2O/query", "S2O/gallery"]
    node.SAMPLE_NUM = 5
    node.SAMPLE_STEP = 200  # network calls of a sample
    node.SAMPLER = "released"
    node.ETA = 1.0  # noise of the released sampler
    node.ORDER = 2  # of the few-step sampler
    node.CLIP = False  # clamp estimates of the SAR picture to [-1, 1]
    node.GREY = False  # True: a sample's three bands become their mean, as a real SAR picture's are equal
    node.SAMPLE_BATCH = 16  # samples that go through a GPU together
    return node
