"""Class-imbalanced, label-scarce segmentation of large point clouds by decoupled optimization."""

from mink_decouple.compiled import ensure_place

ensure_place()
__version__ = "0.1.0"
