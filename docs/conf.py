"""Sphinx settings; the pages are Markdown."""

project = "nightbeam"
author = "the nightbeam developers"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
html_theme = "alabaster"
myst_heading_anchors = 3
exclude_patterns = ["_build"]
