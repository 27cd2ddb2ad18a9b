"""Skies, arrays and faults with known truth, written in the layout of the real files."""
