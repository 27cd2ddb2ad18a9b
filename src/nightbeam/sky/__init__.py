"""Directions, times, beams and source lists: the geometry that every radio package shares."""
