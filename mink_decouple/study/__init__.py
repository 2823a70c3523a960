"""Experiments: grids of trainings from one file, run, continued and shared."""
