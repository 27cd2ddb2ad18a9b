"""``python -m nightbeam.platform`` is a supervisor that reads its settings from standard input."""

from nightbeam.platform.worker import main

if __name__ == "__main__":
    main()
