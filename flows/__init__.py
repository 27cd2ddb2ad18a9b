"""What runs in which order; no arithmetic, no file access."""

import logging

# PREFECT_LOGGING_EXTRA_LOGGERS sends the library's log to the server but sets no level, and the root
# logger's WARNING would drop the INFO lines that people want to read at a run.
logging.getLogger("nightbeam").setLevel(logging.INFO)
