"""One process keeps a run directory up; the kernel releases its lock however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import ConfigError
from deploy.local.run_lock import run_lock

HOLDER = """
import sys, time
from pathlib import Path
from deploy.local.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_one_is_refused_with_who_holds_it_until_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    said = (
        rf"whose run process {holder.pid} on .* has kept up since 20.*; allowed: a run that is not up \(stop it first\)"
    )
    with pytest.raises(ConfigError, match=said), run_lock(path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with run_lock(path):
        pass


def test_a_lock_file_without_a_holder_is_free(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("no JSON")
    with run_lock(tmp_path / "lock"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = r"file/run, which cannot be written \(Not a directory: "
    with pytest.raises(ConfigError, match=said), run_lock(tmp_path / "file" / "run" / "lock"):
        pass
    with pytest.raises(ConfigError, match=r"which cannot be written"), run_lock(Path("/proc/run/lock")):
        pass
