"""Detector geometry as CrystFEL writes it: panels, pixel maps, tiles."""
