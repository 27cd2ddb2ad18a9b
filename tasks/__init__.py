"""Thin wrappers that make library functions Prefect tasks, one module per library package."""
