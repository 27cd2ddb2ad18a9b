"""Detector constants: the right ones for a run, one copy for each machine."""
