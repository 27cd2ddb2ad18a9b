"""What runs in which order; no arithmetic, no file access."""
