"""Single-dish spectra: from counts to temperatures above the atmosphere."""
