"""The data work of a scientific facility: a plain library that needs no workflow engine."""

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Asked for by few, and it brings in the parser of mail headers: 2 MB in each of many small processes.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nightbeam")
    except PackageNotFoundError:  # a checkout on sys.path that was never installed
        return "0+unknown"
