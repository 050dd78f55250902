"""Spatial Probes: why vision-language models are bad at *where*, probed the same way on every model."""

__version__ = "0.1.0"
