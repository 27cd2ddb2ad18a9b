"""Mosaics of drift tiles: which tiles make one, how they are combined, and what is asked of the result."""
