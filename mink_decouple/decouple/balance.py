"""How unbalanced the classes are: imbalance ratio, accumulated gradient ratio, focusing factors (Eq. 3 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from mink_decouple.decouple.losses import labelled_rows, log_softmax

IGNORE = -1

_RHO_MODES = ("repaired", "literal")
_SOURCES = ("labels", "predicted", "auto")
_BASES = ("seed", "efl")
_ACTIVATIONS = ("softmax", "sigmoid")
EFL_BASE = 2.0


def imbalance_ratio(counts: Tensor, mode: str = "repaired") -> Tensor:
    """Imbalance ratio rho_c of Eq. 3 and 6.

    The printed `M_c / M_min` gives the tail the highest threshold and subtracts most from its focusing factor, opposite
    to the paper's text. The repaired `M_max / M_c` has `1 / rho` = 1 for the head and small for the tail, which fixes
    both.

    Args:
        counts: (C,) points per class (see `select_counts`).
        mode: "repaired" or "literal".

    Returns:
        (C,) float32, >= 1. A class with count 0 takes the ratio of the rarest present class; without any count all
        ratios are 1.

    Raises:
        ValueError: unknown mode or a negative count.
    """
    _check("rho.mode", mode, _RHO_MODES)
    counts = counts.to(torch.float64)
    if bool((counts < 0).any()):
        raise ValueError(f"counts: {counts.min().item():g} is negative")
    present = counts > 0
    if not bool(present.any()):
        return torch.ones_like(counts, dtype=torch.float32)
    rarest = counts[present].min()
    filled = torch.where(present, counts, rarest)
    return (filled.max() / filled if mode == "repaired" else filled / rarest).to(torch.float32)


def labels_are_flat(labelled: Tensor, at_most: float = 2.0) -> bool:
    """Whether a label budget says nothing about class frequency, as "one point per class" does.

    Args:
        labelled: (S, C) labelled points of each scene and class, or (C,) their sum. Per scene is the sharper test: with
            one point per class and room the sums still differ, by the number of rooms that hold a class.
        at_most: largest ratio, in the median scene, between the most and least labelled class present.
    """
    rows = labelled.to(torch.float64).reshape(-1, labelled.shape[-1])
    rows = rows[(rows > 0).any(1)]
    if not len(rows):
        return True
    least = torch.where(rows > 0, rows, torch.full_like(rows, torch.inf)).min(1).values
    return bool((rows.max(1).values / least).median() <= at_most)


def select_counts(
    labelled: Tensor, predicted: Tensor | None, source: str = "auto", flat_at_most: float = 2.0
) -> Tensor:
    """Choose the class counts behind rho.

    Args:
        labelled: (S, C) visible labels per scene and class, or (C,) their sum.
        predicted: (C,) unlabelled points predicted as each class in the current iteration; None before the first one.
        source: "labels", "predicted", or "auto": predicted counts where the labelled ones are flat (1pt), else labels.
        flat_at_most: see `labels_are_flat`.

    Returns:
        (C,) float64.

    Raises:
        ValueError: unknown source, or "predicted" without predicted counts.
    """
    _check("rho.source", source, _SOURCES)
    summed = labelled.to(torch.float64).reshape(-1, labelled.shape[-1]).sum(0)
    if source == "predicted" and predicted is None:
        raise ValueError("rho.source: 'predicted' needs predicted counts, none were made yet; use labels or auto")
    if source == "labels" or predicted is None:
        return summed
    if source == "auto" and not labels_are_flat(labelled, flat_at_most):
        return summed
    return predicted.to(torch.float64)


def focusing_factors(
    g: Tensor, rho: Tensor, s: float = 10.0, clamp_min: float | None = 0.0, base: str = "seed"
) -> Tensor:
    """Focusing factor of each class, `gamma^c = s (1 - g^c) - 1 / rho_c` (Eq. 6).

    Args:
        g: (C,) accumulated gradient ratio in 0..1 (`GradientRatio.ratio`).
        rho: (C,) imbalance ratio (`imbalance_ratio`).
        s: scale, the upper limit of gamma.
        clamp_min: lower limit, or None for the equation as printed, which reaches -1.
        base: "seed" subtracts `1 / rho` (the paper); "efl" adds 2 instead (Equalized Focal Loss).

    Returns:
        (C,) float32.

    Raises:
        ValueError: unknown base.
    """
    _check("gamma.base", base, _BASES)
    g = g.detach().to(torch.float32)
    offset = -1.0 / rho.to(g) if base == "seed" else torch.full_like(g, EFL_BASE)
    gamma = s * (1.0 - g) + offset
    return gamma if clamp_min is None else gamma.clamp_min(clamp_min)


class GradientRatio:
    """Accumulated gradient ratio `g^c = clip(sum |grad+| / sum |grad-|, 0, 1)` of Eq. 6 (after EQLv2 and EFL).

    The gradient of the cross-entropy at logit c of a row is `p_c - y_c`: positive rows are those of class c, negative
    ones the others. Feed it the rows that enter L_mI-FL and reset it at every I-step: over all labelled rows of a
    converged softmax network the ratio is 1 for every class.

    Args:
        classes: C.
        act: "softmax" or "sigmoid".
        ema: None sums from the last reset; a decay in (0, 1) forgets older batches instead.
        device: where the sums are kept, from the beginning: that of the logits, or each batch waits for its copy.

    Raises:
        ValueError: unknown act, classes < 1 or ema outside (0, 1).
    """

    def __init__(
        self,
        classes: int,
        act: str = "softmax",
        ema: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        _check("g.act", act, _ACTIVATIONS)
        if classes < 1:
            raise ValueError(f"classes: {classes}, expected at least 1")
        if ema is not None and not 0.0 < ema < 1.0:
            raise ValueError(f"g.ema: {ema}, expected a decay between 0 and 1, or none")
        self.classes = classes
        self.act = act
        self.ema = ema
        # float64: a float32 sum stops growing after some 10^7 rows
        self._sums = torch.zeros(2, classes, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add the gradients of one batch; nothing flows back.

        Args:
            logits: (n, C) of the current forward pass.
            target: (n,) int64, -1 for rows to leave out.
        """
        rows = labelled_rows(target)
        if rows is not None:
            logits, target = logits[rows], target[rows]
        z = logits.detach().float()
        p = (log_softmax(z).exp() if self.act == "softmax" else z.sigmoid()).to(torch.float64)
        labelled = target != IGNORE
        own = target.clamp_min(0).unsqueeze(1)
        p_own = p.gather(1, own).squeeze(1)
        positive = p.new_zeros(self.classes).index_add_(0, own.squeeze(1), (1.0 - p_own) * labelled)
        negative = (p.scatter(1, own, 0.0) * labelled.unsqueeze(1)).sum(0)
        batch = torch.stack([positive, negative]).to(self._sums.device)
        # the missing (1 - ema) of the batch cancels in the ratio
        self._sums = self._sums + batch if self.ema is None else self.ema * self._sums + batch

    def accumulators(self) -> Tensor:
        """(2, C) float64 copy of the positive and negative sums of this process, for a trainer to add over ranks."""
        return self._sums.clone()

    def ratio(self, accumulators: Tensor | None = None) -> Tensor:
        """Current g: (C,) float32 in 0..1; 1 for a class without any gradient, hence all ones after a reset.

        Args:
            accumulators: (2, C) sums over all ranks; None takes those of this process.
        """
        positive, negative = self._sums if accumulators is None else accumulators
        ratio = torch.where(negative > 0, positive / negative, torch.ones_like(positive))
        return ratio.clamp(0.0, 1.0).to(torch.float32)

    def reset(self) -> None:
        """Forget all gradients."""
        self._sums = torch.zeros_like(self._sums)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors for a checkpoint."""
        return {"sums": self._sums.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: the state is of another number of classes.
        """
        sums = state["sums"]
        if sums.shape != (2, self.classes):
            raise ValueError(f"gradient ratio: state of {sums.shape[-1]} classes, expected {self.classes}")
        self._sums = sums.to(device=self._sums.device, dtype=torch.float64).clone()


def _check(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key}: '{value}' is not one of {', '.join(choices)}")
