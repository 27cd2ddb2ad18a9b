"""What every part stands on: errors, settings, keys, times, files, locks, children, logs."""
