"""The data work of a scientific facility: a plain library that needs no workflow engine."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nightbeam")
except PackageNotFoundError:  # a checkout on sys.path that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
