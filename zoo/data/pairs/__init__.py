"""Pairs of a source and a target text."""

from zoo.data.pairs.dataset import Pairs

__all__ = ["Pairs"]
