"""Interferometer gains: calibrators, models, solutions, their quality and their application."""
