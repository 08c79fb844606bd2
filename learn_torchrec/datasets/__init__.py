"""Data sets: adapters, preparation, loading and generated data."""

from learn_torchrec.datasets.adapters import open_dataset

__all__ = ["open_dataset"]
