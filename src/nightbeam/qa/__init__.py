"""Judgements with reasons, and the figures that show them."""

from __future__ import annotations

from nightbeam.qa.compute import judge, worst_first
from nightbeam.qa.files import read_metrics, sample_visibilities
from nightbeam.qa.measures import Unread, judge_mosaic
from nightbeam.qa.model import (
    CalibrationUse,
    Grade,
    Limits,
    Measure,
    QaArtifact,
    QaLimits,
    QaReport,
    Score,
    VisibilitySample,
)
from nightbeam.qa.report import write_mosaic_qa, write_qa

__all__ = [
    "CalibrationUse",
    "Grade",
    "Limits",
    "Measure",
    "QaArtifact",
    "QaLimits",
    "QaReport",
    "Score",
    "Unread",
    "VisibilitySample",
    "judge",
    "judge_mosaic",
    "read_metrics",
    "sample_visibilities",
    "worst_first",
    "write_mosaic_qa",
    "write_qa",
]
