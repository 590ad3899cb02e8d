"""Command line."""

from sparse_dnm.cli.app import main

__all__ = ["main"]
