"""Standard logging as the commands set it up: one line an event, to stderr or a file."""

from __future__ import annotations

import logging
import sys

from trio_rmq.errors import ConfigError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class OneLineFormatter(logging.Formatter):
    """Time with milliseconds, level, logger, message; what spans lines (a traceback) is joined with ` | `.

    `process_name`, where several processes share one log, stands before the logger.
    """

    default_time_format = "%Y-%m-%d %H:%M:%S"
    default_msec_format = "%s.%03d"

    def __init__(self, process_name: str = "") -> None:
        process = process_name.replace("%", "%%") + " " if process_name else ""
        super().__init__(f"%(asctime)s %(levelname)s {process}%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """`record` as one line."""
        return " | ".join(super().format(record).splitlines())


def set_up_logging(level: str, file: str | None, process_name: str = "") -> None:
    """Send this process's log to stderr, or append it to `file`; ConfigError for a level or file that cannot be.

    `process_name` tells the lines of this process from those of others that write to the same place.
    """
    if level.upper() not in LEVELS:
        raise ConfigError(f"--log-level {level}: the level must be one of {', '.join(LEVELS)}")
    handler: logging.Handler
    try:
        handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    except OSError as error:
        raise ConfigError(f"--log-file {file} cannot be opened: {error.strerror}") from None
    handler.setFormatter(OneLineFormatter(process_name))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
