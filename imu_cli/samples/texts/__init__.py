"""Texts: what holds them, and what makes token ids of them."""
