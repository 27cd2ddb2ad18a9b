"""Judgements with reasons, and the figures that show them."""

from __future__ import annotations

from nightbeam.qa.files import read_metrics, sample_visibilities
from nightbeam.qa.model import QaArtifact, VisibilitySample
from nightbeam.qa.report import write_qa

__all__ = ["QaArtifact", "VisibilitySample", "read_metrics", "sample_visibilities", "write_qa"]
