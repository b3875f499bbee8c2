"""Whether a run's directories can be written: a full disk ends most services, each with a different error."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_PROBE_BYTES: Final = 1 << 20


def storage_obstacle(directories: Iterable[Path]) -> str | None:
    """Why 1 MiB cannot be written to one of them, in words; None where it can, or the directory is not there yet."""
    for directory in directories:
        probe = directory / f".room-{os.getpid()}"
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{directory} cannot be written: {error.strerror}"
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
    return None
