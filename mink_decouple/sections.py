"""The sections of a configuration: typed records whose defaults are the method of the paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mink_decouple.typed import setting

BACKBONES = ("minkunet", "randla")
ENGINES = ("auto", "native", "minkowski")
PREPARED = ("s3dis", "scannet", "semantic3d", "semantickitti")
"""Benchmarks: `data.root` is what `prepare` made of their downloads."""
STAGES = ("all", "pretrain", "i_step")
"""Where a switch is on: everywhere the backbone learns, in the pre-training, or in the I-step (or joint step)."""


@dataclass(frozen=True)
class LabelsConfig:
    """Which labels training may see."""

    budget: str = "1pt"  # 1pt | Npt | R% | Nx | uniform:R% | scans:R% | full | list:FILE | a label file
    unit: str = setting("grid", choices=("grid", "raw"))  # what a budget counts: points of the grid cloud, or raw ones
    seed: int | None = setting(None, low=0)  # None: the run's seed
    spread: str = setting(
        "none", choices=("none", "segments", "forest")
    )  # to their segments, or to where a forest is sure
    spread_in: str = setting("pseudo", choices=("pseudo", "all"))  # stages with pseudo-labels, or the pre-training too


@dataclass(frozen=True)
class SyntheticConfig:
    """The embedded dataset: procedural buildings with S3DIS' 13 classes."""

    areas: int = setting(6, low=5, high=64)  # of a building; area 5 is held out
    rooms_per_area: int = setting(6, low=1, high=1000)
    points_per_room: int = setting(45_000, low=1000)  # raw points
    seed: int = 0  # of the buildings


@dataclass(frozen=True)
class DataConfig:
    """Where clouds come from and how they become rows of features."""

    dataset: str = setting("synthetic", choices=("synthetic", "folder", *PREPARED))
    root: str | None = None  # a folder of clouds, or one that `prepare` wrote
    classes: str | None = None  # classes.yaml; None: the one in `root`
    splits: dict[str, list[str]] | None = None  # split name -> names of scenes or groups; None: those of `root`
    eval_split: str = "val"  # the split that is scored
    grid: float = setting(0.05, low=1e-4)  # metres; clouds are reduced to one point a cell once
    features: list[str] = setting(["rgb", "height"])  # what a network sees of a point, in this order (below)
    height: str = setting("floor", choices=("floor", "ground"))  # above the lowest points, or above the local ground
    factors: dict[str, float] = setting({})  # feature name -> factor that brings its values near 1
    centre: str = setting("xyz", choices=("xyz", "xy"))  # axes on which the centre of a crop is subtracted
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True)
class ModelConfig:
    """The network: one backbone and its classifier."""

    variant: str = "tiny"  # minkunet: tiny | 14A | 18A | 34C; randla: 5 | 4
    head: str = setting(
        "linear", choices=("linear", "mlp")
    )  # the classifier: one layer, or three with batch norm and dropout (RandLA-Net)
    engine: str = setting("auto", choices=ENGINES)  # of minkunet; auto: native
    weights: str | None = None  # to begin with: a checkpoint or an exported network; None: fresh ones


@dataclass(frozen=True)
class ViewConfig:
    """How a scene is cut into what a network sees in one step."""

    crop_points: int = setting(0, low=0)  # grid points of a crop; 0: whole scenes
    shape: str = setting("sphere", choices=("sphere", "column"))  # of a crop; column: whatever the height
    batch: int = setting(4, low=1, high=511)  # crops of a micro-batch
    max_points: int = setting(
        0, low=0
    )  # grid points of a micro-batch at most, with fewer than `batch` crops; 0: no limit
    accumulate: int = setting(1, low=1)  # micro-batches of an optimizer step
    label_centred: float = setting(0.5, low=0.0, high=1.0)  # share of pre-training crops centred on a labelled point
    center_noise: float = setting(0.35, low=0.0)  # metres
    workers: int = setting(1, low=0)  # threads that prepare batches ahead
    k: int = setting(16, low=1)  # neighbours of RandLA-Net
    voxel: list[float] | None = None  # MinkUNet's voxel along x, y, z, metres; None: cubes of `data.grid`
    mix: float = setting(0.0, low=0.0, high=1.0)  # probability that two samples of a step are laid into each other
    mix_stages: str = setting("all", choices=STAGES)  # where it is on


@dataclass(frozen=True)
class StageConfig:
    """Length and initial learning rate of one kind of stage."""

    epochs: int = setting(1, low=1)
    lr: float = setting(1e-3, low=1e-12)


@dataclass(frozen=True)
class ScheduleConfig:
    """Algorithm 1: pre-train, then alternate the I-step and the II-step."""

    mode: str = setting(
        "decoupled", choices=("decoupled", "joint", "supervised")
    )  # joint: backbone and classifier together; supervised: given labels alone
    iterations: int = setting(10, low=0)  # of I-step and II-step
    steps: int = setting(0, low=0)  # optimizer steps of an epoch; 0: as many as cover the training set about once
    policy: str = setting("exp", choices=("exp", "cosine", "constant"))  # of the learning rate, anew in every stage
    decay: float = setting(0.98, low=1e-12, high=1.0)  # factor per epoch of policy exp
    warmup: int = setting(0, low=0)  # epochs of the pre-training over which the learning rate rises
    pretrain: StageConfig = field(default_factory=lambda: StageConfig(epochs=100, lr=1e-2))
    i_step: StageConfig = field(default_factory=lambda: StageConfig(epochs=30, lr=1e-3))
    ii_step: StageConfig = field(default_factory=lambda: StageConfig(epochs=100, lr=1e-3))


@dataclass(frozen=True)
class PseudoConfig:
    """Two-round pseudo-label selection (Eq. 2 and 3)."""

    delta_d: float = setting(0.5, low=0.0, high=1.0)  # lowest probability of a certain label (Eq. 2)
    delta_len: float = setting(
        0.1, low=0.0, high=1.0
    )  # window below a class's highest probability in the scene (Eq. 2); 1: none
    scope: str = setting("cloud", choices=("cloud", "global"))  # of the highest probabilities
    refresh: str = setting(
        "iter", choices=("iter", "epoch")
    )  # when pseudo-labels are made: each iteration, or each epoch of an I-step
    uncertain: str = setting("threshold", choices=("threshold", "rate", "off"))  # the second round (Eq. 3)
    beta: float = setting(0.5, low=0.0, high=1.0)  # exponent of its threshold; smaller asks for more
    floor: float = setting(0.0, low=0.0, high=1.0)  # lowest probability of an uncertain label
    tail_rule: str = setting("half", choices=("half", "below_mean", "all"))  # classes of the second round
    tail_frac: float = setting(0.5, low=0.0, high=1.0)  # share of the classes that rule half takes, the rarest
    rho_mode: str = setting(
        "repaired", choices=("repaired", "literal")
    )  # imbalance ratio: M_max / M_c, or M_c / M_min as printed
    rho_source: str = setting(
        "auto", choices=("auto", "labels", "predicted")
    )  # whose counts; auto: predicted where labels are flat
    votes: int = setting(1, low=1)  # augmented passes averaged when pseudo-labels are made
    smooth: str = setting("none", choices=("none", "segments"))  # probabilities averaged within each segment
    within: str = setting("any", choices=("any", "labelled"))  # classes a scene's pseudo-labels may take


@dataclass(frozen=True)
class SegmentsConfig:
    """The unsupervised over-segmentation behind `pseudo.smooth`, `labels.spread` and `eval.smooth`."""

    k: int = setting(8, low=2)  # neighbours of a point: for its normal, and its edges
    angle: float = setting(30.0, low=0.1, high=90.0)  # degrees between normals that count as one unit of difference
    colour: float = setting(0.15, low=1e-3)  # distance of colours (0..1 a channel) that counts as one
    scale: float = setting(2.0, low=0.0)  # how much a small segment may differ within: larger merges more
    most: int = setting(500, low=1)  # grid points of a segment


@dataclass(frozen=True)
class ForestConfig:
    """The random forest on neighbourhoods' shapes behind `labels.spread: forest`."""

    trees: int = setting(300, low=1)
    radii: list[float] = setting([2.0, 4.0, 8.0, 16.0])  # of the spheres around a point, in grid sizes
    neighbors: int = setting(64, low=3)  # the nearest so many of a sphere
    share: float = setting(0.3, low=0.0, high=1.0)  # of the points that it gives a class in a scene, the surest
    most: int = setting(50_000, low=1)  # given labels that it learns from


@dataclass(frozen=True)
class LossConfig:
    """The losses of the I-step (Eq. 4 to 8) and of supervised stages."""

    feature: str = setting("mifl", choices=("mifl", "focal", "none"))  # beside L_seg-I
    alpha: float = setting(0.5, low=0.0)  # of the focal losses
    alpha_mode: str = setting("constant", choices=("constant", "confidence"))  # confidence: that of the pseudo-label
    gamma: float = setting(2.0, low=0.0)  # of `focal` (Eq. 4)
    s: float = setting(10.0, low=0.0)  # upper limit of the focusing factors (Eq. 6)
    clamp_min: float | None = 0.0  # their lower limit; null: none, as printed
    gamma_base: str = setting(
        "seed", choices=("seed", "efl")
    )  # seed: minus 1 / rho; efl: plus 2, as Equalized Focal Loss
    form: str = setting(
        "softmax", choices=("softmax", "ovr")
    )  # of L_mI-FL: the own class alone, or every class against the rest
    efl_weight: bool = False  # Equalized Focal Loss' weight of each class
    g_source: str = setting("pseudo", choices=("pseudo", "all", "labels"))  # rows behind the gradient ratio g
    g_act: str = setting("softmax", choices=("softmax", "sigmoid"))  # probabilities behind it
    g_reset: str = setting("iter", choices=("iter", "never"))  # when it begins anew
    seg_norm: str = setting(
        "joint", choices=("joint", "split")
    )  # one mean over given and pseudo-labels, or one of each
    seg_lambda: float = setting(1.0, low=0.0)  # weight of the pseudo-labels where seg_norm is split
    class_weight: str = setting("inv", choices=("inv", "none"))  # 1 / (f + 0.02) of the visible labels
    pseudo_weight: str = setting("none", choices=("none", "inv"))  # the same of the pseudo-labels; seg_norm split
    absent: float = setting(0.0, low=0.0)  # weight of the loss on classes that a scene has no label of; 0: off
    erda: float = setting(0.0, low=0.0)  # weight of the distribution alignment on unlabelled rows; 0: off
    erda_stages: str = setting("all", choices=STAGES)  # where it is on
    erda_momentum: float = setting(0.999, low=0.0, high=1.0)  # of the class prototypes
    erda_temperature: float = setting(1.0, low=1e-3)  # of the cosine similarities


@dataclass(frozen=True)
class SecondStepConfig:
    """The II-step: the classifier alone, on features of a frozen backbone (Eq. 9)."""

    labels: str = setting("gt", choices=("gt", "spread", "pseudo", "mixed"))  # spread: and their segments
    feature: str = setting("none", choices=("none", "mifl"))  # mifl: Table 7, the loss moved to the II-step
    cache_passes: int = setting(4, low=1)  # augmented passes over the training set whose features are kept
    rows: int = setting(4096, low=2)  # cached rows of one optimizer step
    context: int = setting(512, low=0)  # unlabelled rows kept per view, for the batch norm of an MLP head
    spread_rows: int = setting(1024, low=1)  # rows kept per view of those that given labels spread to
    class_weight: str = setting("none", choices=("none", "inv"))  # inv: by its own rows; none: loss.class_weight
    sampler: str = setting("natural", choices=("natural", "balanced"))  # balanced: every class as often as any other
    logit_adjust: float = setting(0.0, low=-4.0, high=4.0)  # tau; 0: off


@dataclass(frozen=True)
class EmaConfig:
    """The exponential moving average of the network (mean teacher)."""

    decay: float = setting(0.0, low=0.0, high=0.999999)  # 0: off
    use: str = setting("both", choices=("pseudo", "eval", "both"))  # what the averaged network is asked for
    restart: bool = True  # the trained network takes over the average at the end of each stage of the backbone


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer; its state starts anew in every stage."""

    name: str = setting("adam", choices=("adam", "adamw", "sgd"))
    weight_decay: float = setting(0.0, low=0.0)
    momentum: float = setting(0.9, low=0.0, high=0.9999)  # of sgd; beta 1 of adam
    grad_clip: float = setting(10.0, low=0.0)  # L2 norm; 0: off
    precision: str = setting("fp32", choices=("fp32", "bf16"))  # of the forward pass


@dataclass(frozen=True)
class EvalConfig:
    """Voting evaluation on raw points."""

    votes: int = setting(4, low=1)  # passes averaged, turned and mirrored as far as `augment` does
    smooth: str = setting("none", choices=("none", "segments"))  # then pooled within each segment
    every_iteration: bool = True  # evaluate after the pre-training and after every iteration
    every: str = setting("iteration", choices=("iteration", "epoch"))  # epoch: after those of I- and joint steps, too


@dataclass(frozen=True)
class CheckpointsConfig:
    """What a run keeps to go on from; no figure depends on it."""

    keep: int = setting(2, low=1)  # how many: last.pt, and those before it in case it cannot be read
    minutes: float = setting(10.0, low=0.0)  # within an epoch, as often; 0: only when an epoch ends
    stages: bool = False  # also the network after each score, as STAGE.pt


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    seed: int = 0  # of labels, weights and batches
    backbone: str = setting("minkunet", choices=BACKBONES)
    recipe: str = "decoupled"  # a file of configs/recipes, whose settings win over those of a configuration
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    augment: dict[str, Any] = setting({})  # transform name -> parameters, or null to switch one off
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)
    forest: ForestConfig = field(default_factory=ForestConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ii: SecondStepConfig = field(default_factory=SecondStepConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
