"""Clocks, measurements, and what a step costs."""
