"""Influence-guided machine unlearning of trained classifiers, without retain data (arXiv 2508.01620).

What lies where, and where to begin: docs/development.md.
"""

__version__ = "0.1.0"
