"""Class-imbalanced, label-scarce segmentation of large point clouds by decoupled optimization."""

__version__ = "0.1.0"
