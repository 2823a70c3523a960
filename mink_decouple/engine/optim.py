"""Optimizers and the guarded step that every stage shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mink_decouple.config import OptimConfig


class Diverged(RuntimeError):
    """A loss or gradient that is not finite."""


def make_optimizer(config: OptimConfig, *modules: nn.Module) -> torch.optim.Optimizer:
    """A fresh optimizer over the parameters of `modules` that learn."""
    params = [p for module in modules for p in module.parameters() if p.requires_grad]
    # fused: one pass over all parameters instead of a dozen
    if config.name == "sgd":
        return torch.optim.SGD(params, lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(params, lr=1.0, betas=(config.momentum, 0.999), weight_decay=config.weight_decay, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def take_step(config: OptimConfig, optimizer: torch.optim.Optimizer, loss: Tensor, where: str) -> None:
    """Backward, clip by norm, check, step.

    Raises:
        Diverged: before anything that is not finite reaches a weight; the message names `where`.
    """
    optimizer.zero_grad(set_to_none=True)
    backward(loss, where)
    apply_gradients(config, optimizer, where)


def backward(loss: Tensor, where: str) -> None:
    """Accumulate the gradients of a finite loss."""
    if not bool(torch.isfinite(loss)):
        raise Diverged(f"loss is {loss.item()} on {where}; lower the learning rate or look at these files")
    loss.backward()


def apply_gradients(config: OptimConfig, optimizer: torch.optim.Optimizer, where: str) -> None:
    """Clip the accumulated gradients of the optimizer's parameters by their L2 norm and step."""
    # a frozen part may still hold gradients of an earlier stage: they must not enter the norm
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    limit = config.grad_clip if config.grad_clip > 0 else float("inf")
    norm = torch.nn.utils.clip_grad_norm_(params, limit)
    if not bool(torch.isfinite(norm)):
        raise Diverged(f"gradient norm is {float(norm)} on {where}; lower the learning rate or look at these files")
    optimizer.step()
