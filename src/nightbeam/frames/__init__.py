"""Detector frames: files that hold them, and simulated ones whose peaks are known."""
