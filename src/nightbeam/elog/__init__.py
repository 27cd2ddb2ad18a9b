"""The electronic logbook: what its service says, and what follows from it."""
