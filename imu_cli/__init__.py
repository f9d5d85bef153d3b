"""Influence-guided machine unlearning of trained classifiers, without retain data (arXiv 2508.01620)."""

__version__ = "0.1.0"
