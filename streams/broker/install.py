"""Puts Apache Kafka on this machine: `python -m streams.broker.install`, which `make setup` calls.

Maven resolves the jars from the `pom.xml` beside this file; then the class-data archive is prepared from them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from streams.broker.base import BrokerError
from streams.broker.class_archive import prepare_archive
from streams.broker.jars import JARS_VARIABLE, KAFKA_VERSION, find_jars, jars_directory
from streams.broker.settings import BrokerSettings

_POM = Path(__file__).with_name("pom.xml")


def resolve_jars(directory: Path | None = None, deadline_s: float = 300.0) -> Path:
    """Downloads the jars with Maven unless they are there, all or nothing; returns their directory.

    Raises `BrokerError` when `mvn` is missing, fails, or is not done by the deadline.
    """
    target = jars_directory(directory)
    if find_jars(target):
        return target
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerError("Maven (`mvn`) is not on the path, so Kafka's jars cannot be resolved")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".resolving-") as scratch:
        shutil.copy(_POM, scratch)
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={scratch}/jars"]
        try:
            subprocess.run(
                [maven, "-q", "-B", "-f", f"{scratch}/{_POM.name}", *goal],
                capture_output=True,
                text=True,
                timeout=deadline_s,
                check=True,
            )
        except subprocess.TimeoutExpired:
            raise BrokerError(f"Maven did not resolve Kafka's jars within {deadline_s:g} s") from None
        except subprocess.CalledProcessError as error:
            said = [line for line in error.stdout.splitlines() if "ERROR" in line] or [error.stderr.strip()]
            raise BrokerError(f"Maven could not resolve Kafka's jars: {said[0][:300]}") from None
        if target.exists():
            shutil.rmtree(target)
        (Path(scratch) / "jars").replace(target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m streams.broker.install", description=__doc__)
    parser.add_argument("--jars", type=Path, help=f"where the jars go (else {JARS_VARIABLE}, else in the checkout)")
    parser.add_argument("--java", default="java", help="Java program")
    arguments = parser.parse_args()
    try:
        directory = resolve_jars(arguments.jars)
        settings = BrokerSettings(kind="kafka", java=arguments.java, jars=directory)
        archive = prepare_archive(settings)
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Apache Kafka {KAFKA_VERSION}: {len(find_jars(directory))} jars and {archive.name} in {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
