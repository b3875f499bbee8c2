import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streams.processes.amx import (
    ONEDNN_VARIABLE,
    VERDICT_VARIABLE,
    AmxProbeError,
    amx_state,
    apply_environment,
    verdict,
)

WITH_TILES = "processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile amx_int8\n"
WITHOUT_TILES = "processor\t: 0\nmodel name\t: amx_tile\nflags\t\t: fpu avx512f\n"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    # setenv first, so that what the code under test sets is taken away again afterwards.
    for name in (VERDICT_VARIABLE, ONEDNN_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("text", [WITHOUT_TILES, ""])
def test_absent_without_the_flag_and_remembered(tmp_path: Path, text: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert amx_state(cpuinfo) == "absent"
    assert os.environ[VERDICT_VARIABLE] == "absent"
    cpuinfo.write_text(WITH_TILES)
    assert amx_state(cpuinfo) == "absent"


def test_absent_where_there_is_no_cpuinfo(tmp_path: Path) -> None:
    assert amx_state(tmp_path / "none") == "absent"


def test_a_real_product_in_a_child_decides(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(WITH_TILES)
    # This machine's own answer: what matters is that it is one, and that it is not found out twice.
    state = amx_state(cpuinfo)
    assert state in ("working", "broken")
    assert amx_state(cpuinfo, timeout_s=0.001) == state


def test_a_child_without_an_answer_is_an_error(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(WITH_TILES)
    with pytest.raises(AmxProbeError, match=r"within 0\.001 s"):
        amx_state(cpuinfo, timeout_s=0.001)


def test_verdicts() -> None:
    assert verdict(0, "") == "working"
    assert verdict(-signal.SIGILL, "") == "broken"
    with pytest.raises(AmxProbeError, match="exit code 1: No module named torch"):
        verdict(1, "No module named torch\n")


def test_the_fix_is_applied_where_it_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VERDICT_VARIABLE, "broken")
    assert apply_environment() == "broken"
    assert os.environ[ONEDNN_VARIABLE] == "AVX512_CORE_BF16"


@pytest.mark.parametrize("state", ["absent", "working"])
def test_nothing_is_changed_elsewhere(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setenv(VERDICT_VARIABLE, state)
    assert apply_environment() == state
    assert ONEDNN_VARIABLE not in os.environ


def test_imports_no_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, streams.processes.amx; sys.exit('torch' in sys.modules)"], check=True
    )
