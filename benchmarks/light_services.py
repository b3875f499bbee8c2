"""How fast the light services start, how much memory they take, and that they load neither torch nor vLLM.

    python benchmarks/light_services.py [--broker kafka|embedded]

Starts a broker and, one after the other, each light service of the demo as the supervisor starts it, waits for /ready,
and reads its resident memory and its mapped libraries. With the services' compiled modules in place.
"""

import argparse
import asyncio
import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from deploy.cli.commands.demo import DEMO
from deploy.config.kept import adopt
from deploy.config.run import RunConfig, load
from deploy.local.processes import service_units
from deploy.local.session import Session

LIGHT = ("rewards", "groups", "batches", "dispatcher")
DEADLINE_S = 60.0


def ready(directory: Path, service: str) -> bool:
    """Whether the service's /ready answers 200."""
    try:
        port = json.loads((directory / "health" / f"{service}.json").read_text())["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def measure(config: RunConfig, service: str) -> str:
    """Start one service, wait until it is ready, look at it, stop it; a row of the table."""
    spec = service_units(config, service)[0].processes[0]
    started = time.perf_counter()
    process = subprocess.Popen(spec.argv, env=dict(spec.env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not ready(config.directory, service):
            if time.perf_counter() - started > DEADLINE_S or process.poll() is not None:
                raise SystemExit(f"{service} was not ready within {DEADLINE_S:g} s")
            time.sleep(0.01)
        ready_s = time.perf_counter() - started
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        mib = [member.memory_info().rss / 2**20 for member in family]
        mapped = {Path(region.path).name for region in family[0].memory_maps()}
        heavy = sorted(name for name in mapped if name.startswith(("libtorch", "_C.abi3")))
    finally:
        process.terminate()
        process.wait(20)
    children = f" (+{len(mib) - 1} children, {sum(mib[1:]):.0f} MiB)" if len(mib) > 1 else ""
    return (
        f"{service:<12}{ready_s:>8.2f} s{mib[0]:>8.0f} MiB{children}   torch or vLLM loaded: {', '.join(heavy) or 'no'}"
    )


async def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", choices=("kafka", "embedded"), default="kafka")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        overrides = [f'broker.kind="{arguments.broker}"']
        config = load(DEMO, directory=Path(directory), overrides=overrides)
        adopt(config)
        async with Session(config, note=print):
            for service in LIGHT:
                print(await asyncio.to_thread(measure, config, service), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
