"""Bragg peaks: from a network's logits to centroids and intensities."""
