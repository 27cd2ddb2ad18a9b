"""A site's addresses and secrets, as Prefect blocks."""
