"""Judgements with reasons, and the figures that show them."""
