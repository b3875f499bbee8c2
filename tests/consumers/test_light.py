"""The consumers are light: no torch, no vLLM, little memory, quick to import."""

import json
import pkgutil
import subprocess
import sys

import consumers

MODULES = [module.name for module in pkgutil.walk_packages(consumers.__path__, "consumers.")]

PROGRAM = """
import importlib, json, resource, sys, time
started = time.perf_counter()
for name in sys.argv[1:]:
    importlib.import_module(name)
heavy = sorted({"torch", "vllm", "transformers", "reasoning_gym", "math_verify", "sympy"} & set(sys.modules))
mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"heavy": heavy, "mib": mib, "seconds": time.perf_counter() - started}))
"""


def test_every_module_imports_lightly() -> None:
    assert "consumers.rewards.verifiers.reasoning_gym" in MODULES
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *MODULES], capture_output=True, check=True, timeout=60)
    found = json.loads(ran.stdout)
    assert found["heavy"] == []
    assert found["mib"] < 110
    assert found["seconds"] < 5.0
