"""Measurement Sets: what is inside one, how one is written, and whether one can be trusted."""
