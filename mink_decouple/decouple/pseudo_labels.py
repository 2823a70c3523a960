"""Two rounds of pseudo-labels for one cloud, certain (Eq. 2) and uncertain (Eq. 3).

The functions are pure: probabilities and counts in, labels out. Points with a visible label take no part in any of it;
they are excluded in `_candidates` and nowhere else, so a given label never changes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

NONE = -1
CERTAIN, UNCERTAIN = 1, 2

_MODES = ("threshold", "rate", "off")
_TAIL_RULES = ("half", "below_mean", "all")


@dataclass(frozen=True)
class SelectionOptions:
    """Settings of the selection.

    Attributes:
        delta_len: width of the window below the largest probability of a class (Eq. 2).
        delta_d: lower bound of the certain threshold (Eq. 2).
        beta: exponent of the uncertain threshold (Eq. 3); 0 selects no uncertain point.
        mode: uncertain round by "threshold" (Eq. 3), by "rate" (CReST: the most confident share of each class), or
            "off".
        floor: least uncertain threshold; above 0 it guards very rare classes, whose Eq. 3 threshold accepts every
            arg-max.
        rate_power: exponent of the CReST rate, "rate" only.
        tail_rule: which classes may gain uncertain points, see `tail_classes`.
        tail_frac: share of the classes in the tail, rule "half" only.
    """

    delta_len: float = 0.1
    delta_d: float = 0.5
    beta: float = 0.5
    mode: str = "threshold"
    floor: float = 0.0
    rate_power: float = 1.0 / 3.0
    tail_rule: str = "half"
    tail_frac: float = 0.5

    def __post_init__(self) -> None:
        _check("uncer.mode", self.mode, _MODES)
        _check("tail.rule", self.tail_rule, _TAIL_RULES)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("mode", "tail_rule") and not 0.0 <= value <= 1.0:
                raise ValueError(f"{field.name}: {value}, expected a number in 0..1")


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of one cloud.

    Attributes:
        label: (n,) int64, -1 where there is none, which includes every point with a given label.
        round: (n,) uint8, 0 none or given, 1 certain, 2 uncertain.
        confidence: (n,) float32, probability of the label, 0 where there is none.
    """

    label: Tensor
    round: Tensor
    confidence: Tensor


def certain_thresholds(probs: Tensor, candidates: Tensor, delta_len: float = 0.1, delta_d: float = 0.5) -> Tensor:
    """Moving threshold of each class, `max(max_i p_ic - delta_len, delta_d)` (Eq. 2).

    Args:
        probs: (n, C) normalised probabilities.
        candidates: (n,) bool, the points i.
        delta_len: window width.
        delta_d: lower bound.

    Returns:
        (C,) as `probs`. The thresholds of several clouds taken together are the element-wise maximum of theirs.
    """
    return (_column_max(probs, candidates) - delta_len).clamp_min(delta_d)


def uncertain_thresholds(
    probs: Tensor, remaining: Tensor, rho: Tensor, beta: float = 0.5, floor: float = 0.0
) -> Tensor:
    """Relaxed threshold of each class, `min(max_j p_jc, (1 / rho_c)^beta)` (Eq. 3), not below `floor`.

    Args:
        probs: (n, C) normalised probabilities.
        remaining: (n,) bool, the points j: neither given nor certain.
        rho: (C,) imbalance ratio.
        beta: 0 gives max_j, which nothing exceeds.
        floor: least threshold.

    Returns:
        (C,) as `probs`. The thresholds of several clouds taken together are the element-wise maximum of theirs.
    """
    relaxed = rho.to(probs).reciprocal().pow(beta)
    return torch.minimum(_column_max(probs, remaining), relaxed).clamp_min(floor)


def keep_rates(rho: Tensor, power: float = 1.0 / 3.0) -> Tensor:
    """CReST's share of the points predicted as each class to keep, `mu_l = (N_{L+1-l} / N_1)^power`.

    The class of frequency rank l takes the frequency of the rank mirrored at the middle: 1 for the rarest class, least
    for the most frequent. Classes of one frequency share the mean of their ranks' rates, so that renaming the classes
    renames the rates.

    Args:
        rho: (C,) repaired imbalance ratio (`M_max / M_c`).
        power: exponent.

    Returns:
        (C,) as `rho`, in 0..1.
    """
    frequency = rho.min() / rho
    order = torch.argsort(frequency, descending=True, stable=True)
    rates = torch.empty_like(frequency)
    rates[order] = frequency[order].flip(0).pow(power)
    tied = frequency.unsqueeze(0) == frequency.unsqueeze(1)
    return torch.where(tied.sum(1) > 1, (tied.to(rates.dtype) @ rates) / tied.sum(1), rates)


def tail_classes(counts: Tensor, rule: str = "half", tail_frac: float = 0.5) -> Tensor:
    """Classes that may gain uncertain points: those with the fewest predicted points.

    Args:
        counts: (C,) predicted points per class (`predicted_counts`), summed over all training clouds.
        rule: "half": the rarest `floor(tail_frac * C)` classes; "below_mean": those below the mean count; "all".
        tail_frac: share of the classes, "half" only.

    Returns:
        (t,) int64 ascending class ids.

    Raises:
        ValueError: unknown rule.
    """
    _check("tail.rule", rule, _TAIL_RULES)
    classes = len(counts)
    if rule == "all":
        return torch.arange(classes, device=counts.device)
    if rule == "below_mean":
        return torch.nonzero(counts < counts.double().mean()).flatten()
    rarest = torch.argsort(counts, stable=True)[: int(tail_frac * classes + 1e-9)]
    return rarest.sort().values


def predicted_counts(probs: Tensor, visible: Tensor) -> Tensor:
    """Unlabelled points predicted as each class.

    Args:
        probs: (n, C) probabilities.
        visible: (n,) int64, given labels, -1 = not visible.

    Returns:
        (C,) int64.
    """
    probs, candidates = _candidates(probs, visible)
    return torch.bincount(probs.argmax(1)[candidates], minlength=probs.shape[1])


def cloud_thresholds(
    probs: Tensor, visible: Tensor, rho: Tensor, options: SelectionOptions | None = None, certain: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Certain and uncertain thresholds of one cloud, as `select` would use them.

    For thresholds over a set of clouds take the element-wise maximum of the certain ones, then, given those, of the
    uncertain ones, and hand both to `select`.

    Args:
        probs: (n, C) probabilities.
        visible: (n,) int64, given labels, -1 = not visible.
        rho: (C,) imbalance ratio.
        options: settings; None for the paper's.
        certain: (C,) certain thresholds found elsewhere, which decide what remains; None for those of this cloud.

    Returns:
        `(certain, uncertain)`, each (C,).
    """
    options = options or SelectionOptions()
    probs, candidates = _candidates(probs, visible)
    if certain is None:
        certain = certain_thresholds(probs, candidates, options.delta_len, options.delta_d)
    remaining = candidates & ~_certain_points(probs, candidates, certain)
    return certain, uncertain_thresholds(probs, remaining, rho, options.beta, options.floor)


def select(
    probs: Tensor,
    visible: Tensor,
    rho: Tensor,
    tail: Tensor,
    options: SelectionOptions | None = None,
    certain: Tensor | None = None,
    uncertain: Tensor | None = None,
) -> PseudoLabels:
    """Pseudo-labels of one cloud: certain points first, then uncertain ones of the tail classes among the rest.

    A point can only take its arg-max class, and only strictly above the threshold of that class.

    Args:
        probs: (n, C) probabilities; re-normalised here, since voting leaves their sum below 1. A row of zeros is a
            point that was never visited and gets no label.
        visible: (n,) int64, given labels, -1 = not visible.
        rho: (C,) imbalance ratio; mode "rate" needs the repaired one.
        tail: (t,) int64 class ids (`tail_classes`).
        options: settings; None for the paper's.
        certain: (C,) thresholds found elsewhere, for example over the whole training set; None for those of this cloud.
        uncertain: the same for the uncertain round, mode "threshold" only.

    Raises:
        ValueError: probabilities that are not finite, or unequal lengths.
    """
    options = options or SelectionOptions()
    probs, candidates = _candidates(probs, visible)
    confidence, label = probs.max(1)

    if certain is None:
        certain = certain_thresholds(probs, candidates, options.delta_len, options.delta_d)
    is_certain = _certain_points(probs, candidates, certain)
    remaining = candidates & ~is_certain
    in_tail = torch.zeros(probs.shape[1], dtype=torch.bool, device=probs.device)
    in_tail[tail.to(probs.device)] = True
    eligible = remaining & in_tail[label]

    if options.mode == "off":
        is_uncertain = torch.zeros_like(eligible)
    elif options.mode == "rate":
        rates = keep_rates(rho.to(probs.device), options.rate_power)
        is_uncertain = _most_confident(confidence, label, eligible & (confidence > options.floor), rates)
    else:
        if uncertain is None:
            uncertain = uncertain_thresholds(probs, remaining, rho, options.beta, options.floor)
        is_uncertain = eligible & (confidence > uncertain.to(probs)[label])

    chosen = is_certain | is_uncertain
    return PseudoLabels(
        label=torch.where(chosen, label, torch.full_like(label, NONE)),
        round=is_certain.to(torch.uint8) * CERTAIN + is_uncertain.to(torch.uint8) * UNCERTAIN,
        confidence=torch.where(chosen, confidence, torch.zeros_like(confidence)).float(),
    )


def give_spread(labels: PseudoLabels, visible: Tensor, spread: Tensor) -> PseudoLabels:
    """Pseudo-labels of one cloud with those that given labels spread to: certain, confidence 1, in place of any other.

    Not part of the paper; see `data.segments.spread_labels`.

    Args:
        labels: selected so far.
        visible: (n,) int64 given labels, -1 = not visible; their points stay without a pseudo-label.
        spread: (n,) int64 label that reaches each point, -1 none.
    """
    reached = (spread != NONE) & (visible == NONE)
    return PseudoLabels(
        label=torch.where(reached, spread, labels.label),
        round=labels.round.masked_fill(reached, CERTAIN),
        confidence=labels.confidence.masked_fill(reached, 1.0),
    )


@dataclass(frozen=True)
class Quality:
    """How good pseudo-labels are against hidden truth, for logs; add those of several clouds.

    Attributes:
        selected: (2, C) int64 pseudo-labelled points per class, rows certain and uncertain.
        correct: (2, C) int64 those whose truth agrees.
        hidden: (C,) int64 points of known truth without a given label.
    """

    selected: Tensor
    correct: Tensor
    hidden: Tensor

    def __add__(self, other: Quality) -> Quality:
        return Quality(self.selected + other.selected, self.correct + other.correct, self.hidden + other.hidden)

    def count(self, round: int | None = None) -> Tensor:
        """(C,) int64 points of one round (1 certain, 2 uncertain), or of both."""
        return self.selected.sum(0) if round is None else self.selected[round - 1]

    def precision(self, round: int | None = None) -> Tensor:
        """(C,) float64, correct over selected; NaN for a class without pseudo-labels."""
        return self._correct(round).double() / self.count(round)

    def recall(self, round: int | None = None) -> Tensor:
        """(C,) float64, correct over hidden points of the class; NaN for a class without hidden points."""
        return self._correct(round).double() / self.hidden

    def _correct(self, round: int | None) -> Tensor:
        return self.correct.sum(0) if round is None else self.correct[round - 1]


def quality(labels: PseudoLabels, truth: Tensor, classes: int, visible: Tensor | None = None) -> Quality:
    """Compare pseudo-labels with the truth: only for logs, never for training.

    Args:
        labels: of one cloud.
        truth: (n,) int64, -1 unknown: such points are left out.
        classes: C.
        visible: (n,) int64 given labels, -1 = hidden; given points do not count as hidden. None: all are hidden.
    """
    known = truth != NONE
    hidden = known if visible is None else known & (visible == NONE)
    right = labels.label == truth
    chosen = [(labels.round == r) & known for r in (CERTAIN, UNCERTAIN)]
    return Quality(
        selected=torch.stack([torch.bincount(labels.label[rows], minlength=classes) for rows in chosen]),
        correct=torch.stack([torch.bincount(labels.label[rows & right], minlength=classes) for rows in chosen]),
        hidden=torch.bincount(truth[hidden], minlength=classes),
    )


def _candidates(probs: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised (n, C) probabilities and the (n,) bool mask of points open to a pseudo-label."""
    if probs.ndim != 2 or visible.shape != probs.shape[:1]:
        raise ValueError(f"probs {tuple(probs.shape)} and visible {tuple(visible.shape)}: expected (n, C) and (n,)")
    probs = probs.detach()
    probs = probs.float() if probs.dtype in (torch.float16, torch.bfloat16) else probs
    total = probs.sum(1, keepdim=True)
    if not bool(torch.isfinite(total).all()):
        raise ValueError("probs: contain NaN or infinity; the network diverged, lower the learning rate")
    visited = total > 0
    probs = torch.where(visited, probs / torch.where(visited, total, torch.ones_like(total)), torch.zeros_like(probs))
    return probs, visited.squeeze(1) & (visible == NONE)


def _certain_points(probs: Tensor, candidates: Tensor, certain: Tensor) -> Tensor:
    confidence, label = probs.max(1)
    return candidates & (confidence > certain.to(probs)[label])


def _column_max(probs: Tensor, rows: Tensor) -> Tensor:
    if not len(probs):
        return probs.new_zeros(probs.shape[1])
    return probs.masked_fill(~rows.unsqueeze(1), 0.0).amax(0)


def _most_confident(confidence: Tensor, label: Tensor, eligible: Tensor, rates: Tensor) -> Tensor:
    """(n,) bool: of the eligible points of each class, the most confident `floor(rate * number)`."""
    keep = torch.zeros_like(eligible)
    for c, rate in enumerate(rates.tolist()):
        rows = torch.nonzero(eligible & (label == c)).flatten()
        order = torch.argsort(confidence[rows], descending=True, stable=True)
        keep[rows[order[: int(rate * len(rows) + 1e-6)]]] = True
    return keep


def _check(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key}: '{value}' is not one of {', '.join(choices)}")
