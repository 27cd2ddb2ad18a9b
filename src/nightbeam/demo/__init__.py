"""The main job, end to end, on data whose truth is known, and on real data where they are at hand."""

from nightbeam.demo.model import DemoReport, GroupCheck, MosaicSource, RealCheck, SourceCheck
from nightbeam.demo.worker import demo_settings, run_demo

__all__ = ["DemoReport", "GroupCheck", "MosaicSource", "RealCheck", "SourceCheck", "demo_settings", "run_demo"]
