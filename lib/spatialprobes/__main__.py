"""`python -m spatialprobes`: the command line."""

from .cli import app

app()
