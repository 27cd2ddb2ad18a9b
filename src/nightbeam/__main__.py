"""``python -m nightbeam`` is the ``nightbeam`` command."""

from nightbeam.cli import main

if __name__ == "__main__":
    main()
