"""A backbone and a classifier that can be trained one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mink_decouple.models import randlanet
from mink_decouple.models.heads import build_head

T = TypeVar("T")
PARTS = ("backbone", "classifier")
BACKBONES = ("minkunet", "randla")


class Segmenter(nn.Module):
    """`logits = classifier(backbone(batch))`, one row per row of the batch.

    Args:
        backbone: batch -> features (n, D).
        classifier: features (n, D) -> logits (n, C).
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self._frozen: str | None = None

    @property
    def frozen(self) -> str | None:
        """The part that does not learn: "backbone", "classifier" or None."""
        return self._frozen

    def features(self, batch: Any) -> Tensor:
        """Features (n, D) of a batch; a frozen backbone records no gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._frozen != "backbone"):
            features: Tensor = self.backbone(batch)
        return features

    def forward(self, batch: Any) -> Tensor:
        """Logits (n, C) of a batch."""
        logits: Tensor = self.classifier(self.features(batch))
        return logits

    def freeze(self, part: str | None) -> Segmenter:
        """Let only the other part learn: the I-step freezes "classifier", the II-step "backbone", None thaws both.

        The parameters and batch-norm statistics of the frozen part do not move, whatever `train` is called with. A
        frozen backbone is wholly in evaluation mode, so its features are those of inference; the dropout of a frozen
        classifier stays active.

        Raises:
            ValueError: `part` is not a part.
        """
        if part is not None and part not in PARTS:
            raise ValueError(f"part is {part!r}; choose one of {', '.join(PARTS)} or None")
        self._frozen = part
        for name in PARTS:
            self.get_submodule(name).requires_grad_(name != part)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Segmenter:
        """Set the training mode, except for what is frozen."""
        super().train(mode)
        if self._frozen == "backbone":
            self.backbone.eval()
        elif self._frozen == "classifier":
            for module in self.classifier.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @property
    def engine(self) -> str | None:
        """The name of the engine that computes the backbone, None where it has none."""
        engine = getattr(self.backbone, "engine", None)
        return None if engine is None else str(engine.name)

    def parameter_counts(self) -> dict[str, int]:
        """Number of scalars that each part holds, frozen or not."""
        return {name: sum(p.numel() for p in self.get_submodule(name).parameters()) for name in PARTS}


class ForwardPass(nn.Module):
    """What a training step asks of a segmenter, in one call: features (n, D) and logits (n, C) of a batch."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Features and logits."""
        features = self.model.features(batch)
        return features, self.model.classifier(features)


def build_model(
    backbone: str,
    variant: str,
    in_channels: int,
    num_classes: int,
    head: str | None = None,
    seed: int = 0,
    engine: str = "auto",
) -> Segmenter:
    """A segmenter with fresh weights.

    Args:
        backbone: "minkunet" or "randla".
        variant: size of the backbone, a key of `VARIANTS` in its module.
        in_channels: F of `batch.feats`.
        num_classes: C.
        head: "linear" or "mlp"; None takes the usual one of the backbone: linear for minkunet, mlp for randla.
        seed: of the initial weights. The global random state is left as it was.
        engine: what computes a minkunet: "native", "minkowski" or "auto" (= native). The weights of one seed are the
            same on each.

    Raises:
        ValueError: a name is not among the choices, or the engine does not import or is not for this backbone.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone is {backbone!r}; choose one of {', '.join(BACKBONES)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds the GPUs' as well
        body: nn.Module
        if backbone == "randla":
            if engine == "minkowski":
                raise ValueError("model.engine is 'minkowski', which computes the backbone minkunet, not randla")
            body = randlanet.RandLANet(in_channels, **_sizes(backbone, variant, randlanet.VARIANTS))
        else:
            # the sparse engine is loaded only by those who use it
            from mink_decouple.models import minkunet

            sizes = vars(_sizes(backbone, variant, minkunet.VARIANTS))
            body = minkunet.MinkUNet(in_channels, **sizes, engine_name=engine)
        usual = "mlp" if backbone == "randla" else "linear"
        width: int = body.out_channels
        return Segmenter(body, build_head(head or usual, width, num_classes))


def _sizes(backbone: str, variant: str, variants: Mapping[str, T]) -> T:
    if variant not in variants:
        raise ValueError(f"variant of {backbone} is {variant!r}; choose one of {', '.join(variants)}")
    return variants[variant]
