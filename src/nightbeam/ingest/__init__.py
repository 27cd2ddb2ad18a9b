"""Which files belong to one group of subbands, and whether they are ready."""
