"""The supervisor that starts, watches and stops the servers and workers of a site."""
