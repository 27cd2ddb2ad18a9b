"""Keeping a mirror of the logbook: what to read, reading it, and what is published.

The service is `nightbeam.elog`, the database `nightbeam.catalog.Logbook`.
"""
