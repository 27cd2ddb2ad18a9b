"""The one door to CASA and casacore: child processes for the tasks, careful handles for the tables."""
