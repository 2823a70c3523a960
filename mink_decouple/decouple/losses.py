"""Losses of the decoupled optimization (Eq. 1, 4, 5, 7, 8, 9).

Every loss is a pure function of logits and targets that returns `(sum, count)`: two scalar tensors of the logits' float
type (float32 for half-precision logits). The caller divides once, by the count of the whole optimizer step, so
micro-batches and ranks of unequal label counts weigh every labelled row alike. Without any labelled row the sum is a
zero that is still connected to the logits, so `backward()` works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -1
MISS_MIN = 1e-6  # p is kept <= 1 - 1e-6: a negative or fractional exponent of 1 - p would give inf * 0 at p = 1

_DIVISORS = ("rows", "weights")
_FORMS = ("softmax", "ovr")
_NORMS = ("joint", "split")
_REDUCTIONS = ("mean", "sum")
_WEIGHTS = ("inv", "none")


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, divide_by: str = "rows"
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of the labelled rows (Eq. 8 and 9).

    Args:
        logits: (n, C) floating point.
        target: (n,) int64, train ids or -1 for an unlabelled row.
        weight: (C,) class weights, or None.
        divide_by: what `count` holds: "rows" (labelled rows, as RandLA-Net divides) or "weights" (the sum of their
            class weights, as `torch.nn.CrossEntropyLoss` divides). The same without `weight`.

    Returns:
        `(sum, count)`.

    Raises:
        ValueError: unknown `divide_by`.
    """
    _check("divide_by", divide_by, _DIVISORS)
    logits = _full_precision(logits)
    rows = labelled_rows(target)
    if rows is not None:
        logits, target = logits.index_select(0, rows), target[rows]
    weight = None if weight is None else weight.to(logits)
    total = F.nll_loss(log_softmax(logits), target, weight, ignore_index=IGNORE, reduction="sum")
    labelled = (target != IGNORE).to(logits.dtype)
    if weight is not None and divide_by == "weights":
        labelled = labelled * weight[target.clamp_min(0)]
    return total, labelled.sum()


def adjust_logits(logits: Tensor, prior: Tensor, tau: float = 1.0) -> Tensor:
    """`z + tau * log(prior)` (Menon et al.): their cross-entropy aims at the balanced error; not of the paper.

    Args:
        logits: (n, C) floating point.
        prior: (C,) class frequencies or counts. An absent class takes the frequency of the rarest present one, so that
            it is not left unsuppressed at inference.
        tau: strength, 0 changes nothing; a negative one asks for more of the frequent classes, not less.

    Returns:
        (n, C).

    Raises:
        ValueError: no class has a positive prior.
    """
    prior = prior.to(device=logits.device, dtype=torch.float64)
    if not bool((prior > 0).any()):
        raise ValueError("prior: every class has frequency 0, at least one must be positive")
    rarest = prior[prior > 0].min()
    log_prior = (torch.where(prior > 0, prior, rarest) / prior.sum()).log()
    logits = _full_precision(logits)
    return logits + tau * log_prior.to(logits.dtype)


def focal(logits: Tensor, target: Tensor, gamma: float, alpha: float | Tensor = 0.5) -> tuple[Tensor, Tensor]:
    """Multi-class focal loss `-alpha (1 - p_t)^gamma log p_t` on softmax probabilities (Eq. 4).

    Args:
        logits: (n, C) floating point.
        target: (n,) int64, -1 unlabelled.
        gamma: one focusing parameter for all classes; 0 gives `alpha` times the cross-entropy.
        alpha: constant, or (n,) one value per row.

    Returns:
        `(sum, count)`.
    """
    return imbalanced_focal(logits, target, logits.new_full((logits.shape[1],), gamma, dtype=torch.float32), alpha)


def imbalanced_focal(
    logits: Tensor,
    target: Tensor,
    gamma: Tensor,
    alpha: float | Tensor = 0.5,
    form: str = "softmax",
    efl_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    """Multi-class imbalanced focal loss L_mI-FL with one focusing factor per class (Eq. 5).

    Args:
        logits: (n, C) floating point.
        target: (n,) int64 pseudo-labels, -1 for a row without one.
        gamma: (C,) focusing factors of Eq. 6; negative ones (the literal Eq. 6) stay finite. No gradient flows into it.
        alpha: constant (the paper's 0.5), or (n,) one value per row, for example the confidence of the pseudo-label.
        form: "softmax" takes only the pseudo-class of a row, with its own gamma; "ovr" (one versus rest, as Equalized
            Focal Loss) sums over all classes with `p_t = p_c` for the pseudo-class and `1 - p_c` for the others.
        efl_weight: multiply by `(gamma + 2) / 2`, which undoes the shrinking of the loss by a large exponent.

    Returns:
        `(sum, count)`, count being the number of pseudo-labelled rows.

    Raises:
        ValueError: unknown `form`, or `gamma` is not (C,).
    """
    _check("form", form, _FORMS)
    classes = logits.shape[1]
    if gamma.shape != (classes,):
        raise ValueError(f"gamma: shape {tuple(gamma.shape)}, expected ({classes},): one factor per class")
    logits = _full_precision(logits)
    rows = labelled_rows(target)
    if rows is not None:
        logits, target = logits.index_select(0, rows), target[rows]
        alpha = alpha[rows] if isinstance(alpha, Tensor) else alpha
    gamma = gamma.detach().to(logits)
    labelled = target != IGNORE
    own = target.clamp_min(0).unsqueeze(1)
    log_p = log_softmax(logits)

    if form == "softmax":
        log_pt = log_p.gather(1, own)
        miss = _complement(log_pt)
        gamma = gamma[own]
    else:
        is_own = torch.zeros_like(log_p, dtype=torch.bool).scatter_(1, own, True)
        rest = _complement(log_p)
        log_pt = torch.where(is_own, log_p, rest.log())
        miss = torch.where(is_own, rest, log_p.exp().clamp_min(MISS_MIN))

    loss = -miss.pow(gamma) * log_pt
    if efl_weight:
        loss = loss * (gamma + 2) / 2
    row = loss.sum(1)
    row = row * (alpha.detach().to(row) if isinstance(alpha, Tensor) else alpha)
    return torch.where(labelled, row, torch.zeros_like(row)).sum(), labelled.sum().to(row.dtype)


def absent_classes(logits: Tensor, target: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """`-log sum_{c present} p_c` of the rows without a given label: none of them is of a class that is not there.

    Where a budget labels every class of a scene, what it leaves out says that a class is absent. This is the
    cross-entropy of the coarse label "one of those"; not part of the paper.

    Args:
        logits: (n, C) floating point.
        target: (n,) int64 given labels, -1 hidden.
        present: (n, C) bool, classes that a row may be of. A row without any is left out.

    Returns:
        `(sum, count)`, count being the number of hidden rows.
    """
    hidden = target == IGNORE
    log_p = log_softmax(_full_precision(logits))
    known = hidden & present.any(1) & ~present.all(1)
    row = log_p.masked_fill(~present & known.unsqueeze(1), float("-inf")).logsumexp(1)
    return -torch.where(known, row, torch.zeros_like(row)).sum(), hidden.sum().to(row.dtype)


@dataclass(frozen=True)
class Term:
    """One term of a composed loss.

    Attributes:
        name: key of the term in logs and in the counts of the step.
        total: () sum over the rows.
        count: () divisor of this batch.
        scale: factor of the term.
        reduction: "mean" divides by the count; "sum" does not (Eq. 5 as printed).
    """

    name: str
    total: Tensor
    count: Tensor
    scale: float = 1.0
    reduction: str = "mean"

    def __post_init__(self) -> None:
        _check("reduction", self.reduction, _REDUCTIONS)


def feature_loss(terms: Sequence[Term], counts: Mapping[str, Tensor | float] | None = None) -> Tensor:
    """Compose terms, `sum_k scale_k * total_k / count_k` (Eq. 7: L_mI-FL + L_seg-I; Eq. 1 for a split L_seg-I).

    Args:
        terms: at least one.
        counts: divisors of the whole optimizer step by term name; a term not named there is divided by its own count. A
            divisor of 0 counts as 1, so a term without labels contributes a connected zero.

    Returns:
        () loss.

    Raises:
        ValueError: no term.
    """
    if not terms:
        raise ValueError("terms: empty, a loss needs at least one term")
    counts = counts or {}
    loss = torch.zeros_like(terms[0].total)
    for term in terms:
        value = term.total
        if term.reduction == "mean":
            count = torch.as_tensor(counts.get(term.name, term.count), dtype=value.dtype, device=value.device)
            value = value / torch.where(count > 0, count, torch.ones_like(count))
        loss = loss + term.scale * value
    return loss


def merge_targets(target: Tensor, pseudo: Tensor) -> Tensor:
    """Ground truth where visible, else the pseudo-label: (n,) int64, -1 for neither. A given label never changes."""
    return torch.where(target != IGNORE, target, pseudo)


def hide_labelled(target: Tensor, pseudo: Tensor) -> Tensor:
    """Pseudo-labels of the rows without ground truth: (n,) int64, -1 elsewhere."""
    return torch.where(target != IGNORE, torch.full_like(pseudo, IGNORE), pseudo)


def segmentation_terms(
    logits: Tensor,
    target: Tensor,
    pseudo: Tensor,
    norm: str = "joint",
    lam: float = 1.0,
    weight: Tensor | None = None,
    divide_by: str = "rows",
    pseudo_weight: Tensor | None = None,
) -> tuple[Term, ...]:
    """L_seg-I: cross-entropy of ground truth and pseudo-labels (Eq. 8).

    Args:
        logits: (n, C) floating point.
        target: (n,) int64 ground truth, -1 not visible.
        pseudo: (n,) int64 pseudo-labels, -1 none; ignored where the ground truth is visible.
        norm: "joint" is Eq. 8, one mean over the union: term `seg`. "split" is Eq. 1, the mean over the ground truth
            plus `lam` times the mean over the pseudo-labels, for budgets whose few labels a joint mean would drown:
            terms `seg_gt` and `seg_pseudo`.
        lam: weight of the pseudo-labels, "split" only.
        weight: (C,) class weights, or None.
        divide_by: see `cross_entropy`.
        pseudo_weight: (C,) weights of the pseudo-labels in place of `weight`, "split" only.

    Returns:
        Terms for `feature_loss`.

    Raises:
        ValueError: unknown `norm`.
    """
    _check("norm", norm, _NORMS)
    if norm == "joint":
        return (Term("seg", *cross_entropy(logits, merge_targets(target, pseudo), weight, divide_by)),)
    given = cross_entropy(logits, target, weight, divide_by)
    hidden = weight if pseudo_weight is None else pseudo_weight
    found = cross_entropy(logits, hide_labelled(target, pseudo), hidden, divide_by)
    return Term("seg_gt", *given), Term("seg_pseudo", *found, scale=lam)


def class_weights(counts: Tensor, mode: str = "inv") -> Tensor:
    """Class weights from the visible labels.

    Args:
        counts: (C,) labelled points per class; never those of hidden labels.
        mode: "inv" gives `1 / (f + 0.02)` with the share f of each class (RandLA-Net); "none" gives ones (the paper).

    Returns:
        (C,) float32.

    Raises:
        ValueError: unknown mode, or all counts are 0.
    """
    _check("class_weight", mode, _WEIGHTS)
    counts = counts.to(torch.float64)
    if mode == "none":
        return torch.ones_like(counts, dtype=torch.float32)
    if not bool(counts.sum() > 0):
        raise ValueError("class_weight: no labelled point in any class, weights need at least one")
    return (1.0 / (counts / counts.sum() + 0.02)).to(torch.float32)


def pseudo_weights(counts: Tensor) -> Tensor:
    """Class weights `1 / (f + 0.02)` of the pseudo-labels, scaled to a mean of 1 over them; not part of the paper.

    Args:
        counts: (C,) pseudo-labelled points per class; without any, all weights are 1.

    Returns:
        (C,) float32.
    """
    total = counts.to(torch.float64).sum()
    if not bool(total > 0):
        return torch.ones_like(counts, dtype=torch.float32)
    share = counts.to(torch.float64) / total
    weight = 1.0 / (share + 0.02)
    return (weight / (weight * share).sum()).to(torch.float32)


def labelled_rows(target: Tensor) -> Tensor | None:
    """The rows of (n,) targets that carry a label, or None for all of them.

    With few labels most rows need no softmax. On a GPU that would cost more than it saves: it would have to wait until
    their number is known.
    """
    return (target != IGNORE).nonzero().squeeze(1) if target.device.type == "cpu" else None


def log_softmax(logits: Tensor) -> Tensor:
    """`log_softmax` over the classes of (n, C)."""
    # torch's CPU kernel is four times as fast along the first axis as along a short last one
    return logits.t().contiguous().log_softmax(0).t() if logits.device.type == "cpu" else F.log_softmax(logits, 1)


def _complement(log_p: Tensor) -> Tensor:
    """`1 - p`, accurate near p = 1 and never below MISS_MIN."""
    return (-torch.expm1(log_p)).clamp_min(MISS_MIN)


def _full_precision(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _check(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key}: '{value}' is not one of {', '.join(choices)}")
