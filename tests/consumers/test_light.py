"""The consumers are light: no torch, no vLLM, little memory."""

import json
import pkgutil
import subprocess
import sys

import consumers

MODULES = [module.name for module in pkgutil.walk_packages(consumers.__path__, "consumers.")]

PROGRAM = """
import importlib, json, re, sys
from pathlib import Path
for name in sys.argv[1:]:
    importlib.import_module(name)
heavy = sorted({"torch", "vllm", "transformers", "reasoning_gym", "math_verify", "sympy"} & set(sys.modules))
# Not ru_maxrss: a child starts with its parent's, and pytest may have torch loaded.
mib = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"heavy": heavy, "mib": mib}))
"""


def test_every_module_imports_lightly() -> None:
    assert "consumers.rewards.verifiers.reasoning_gym" in MODULES
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *MODULES], capture_output=True, check=True, timeout=60)
    found = json.loads(ran.stdout)
    assert found["heavy"] == []
    assert found["mib"] < 110
