"""The loss of one optimizer step: which labels, which terms, which divisors (Eq. 7, 8, 9)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mink_decouple.config import LossConfig
from mink_decouple.decouple.balance import GradientRatio, focusing_factors
from mink_decouple.decouple.erda import Alignment, alignment_loss
from mink_decouple.decouple.losses import (
    Term,
    absent_classes,
    adjust_logits,
    cross_entropy,
    feature_loss,
    focal,
    imbalanced_focal,
    merge_targets,
    segmentation_terms,
)

NONE = -1


@dataclass
class Objective:
    """The terms of a stage.

    Attributes:
        config: of the losses.
        labels: rows of the cross-entropy: "gt", "pseudo" or "mixed" (both, L_seg-I).
        feature: loss on the pseudo-labelled rows beside it: "mifl" (Eq. 5), "focal" (Eq. 4) or "none".
        weight: (C,) class weights or None.
        rho: (C,) imbalance ratio of this iteration.
        ratio: accumulated gradient ratio g^c.
        tau: strength of the logit adjustment of the cross-entropy; 0 for none.
        prior: (C,) class counts behind it.
        alignment: prototypes of ERDA, or None.
        pseudo_weight: (C,) class weights of the pseudo-labels in place of `weight`, or None.
    """

    config: LossConfig
    labels: str
    feature: str
    weight: Tensor | None
    rho: Tensor
    ratio: GradientRatio
    tau: float = 0.0
    prior: Tensor | None = None
    alignment: Alignment | None = None
    pseudo_weight: Tensor | None = None

    def counts(self, target: Tensor, pseudo: Tensor) -> dict[str, int]:
        """Divisors that a batch contributes to its optimizer step; the trainer adds them over micro-batches."""
        given, found = int((target != NONE).sum()), int((pseudo != NONE).sum())
        seg = {"gt": given, "pseudo": found, "mixed": given + found}[self.labels]
        hidden = len(target) - given
        return {
            "seg": seg,
            "seg_gt": given,
            "seg_pseudo": found,
            "feature": found,
            "absent": hidden,
            "erda": hidden,
        }

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        pseudo: Tensor,
        confidence: Tensor,
        counts: dict[str, float],
        features: Tensor | None = None,
        present: Tensor | None = None,
        gamma: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch, divided by the counts of the whole step, and the value of each term.

        Args:
            logits: (n, C).
            target: (n,) int64 given labels, -1 hidden.
            pseudo: (n,) int64 pseudo-labels, -1 none.
            confidence: (n,) float32 of the pseudo-labels.
            counts: sums of `counts()` over the step.
            features: (n, D) that the logits are of; the alignment needs them.
            present: (n, C) bool, classes that a row may be of, for `loss.absent`; None where nothing is known.
            gamma: (C,) focusing factors that all micro-batches of a step share; None takes those of the moment.
        """
        c = self.config
        terms: list[Term] = []
        told = logits if self.tau == 0 or self.prior is None else adjust_logits(logits, self.prior, self.tau)
        if self.labels == "mixed":
            terms += segmentation_terms(
                told, target, pseudo, c.seg_norm, c.seg_lambda, self.weight, pseudo_weight=self.pseudo_weight
            )
        else:
            terms.append(Term("seg", *cross_entropy(told, target if self.labels == "gt" else pseudo, self.weight)))
        if self.feature != "none":
            alpha = confidence if c.alpha_mode == "confidence" else c.alpha
            if self.feature == "focal":
                terms.append(Term("feature", *focal(logits, pseudo, c.gamma, alpha)))
            else:
                gamma = (self.gamma() if gamma is None else gamma).to(logits.device)
                total = imbalanced_focal(logits, pseudo, gamma, alpha, c.form, c.efl_weight)
                terms.append(Term("feature", *total))
                rows = {"pseudo": pseudo, "labels": target, "all": merge_targets(target, pseudo)}[c.g_source]
                self.ratio.update(logits, rows)
        if self.alignment is not None and features is not None:
            spread = alignment_loss(self.alignment(features, target), logits, target)
            terms.append(Term("erda", *spread, scale=c.erda))
        if present is not None and c.absent:
            terms.append(Term("absent", *absent_classes(logits, target, present), scale=c.absent))
        loss = feature_loss(terms, counts)
        values = {t.name: float(t.total.detach()) * t.scale / max(counts[t.name], 1.0) for t in terms}
        return loss, values

    def gamma(self) -> Tensor:
        """(C,) focusing factors of the moment (Eq. 6)."""
        c = self.config
        return focusing_factors(self.ratio.ratio().cpu(), self.rho.cpu(), c.s, c.clamp_min, c.gamma_base)
