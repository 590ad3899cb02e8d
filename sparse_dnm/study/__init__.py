"""Comparisons over many networks."""
