"""Classifier-level influence of every forget sample, in closed form."""
