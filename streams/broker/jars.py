"""Apache Kafka's jars: where they are, how they get there, and whether this machine can run them.

`python -m streams.broker.jars` resolves them with Maven from the `pom.xml` beside this file and prepares the class-data
archive; `make setup` calls it where `mvn` is on the path.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from streams.broker.base import BrokerError
from streams.broker.settings import BrokerSettings

KAFKA_VERSION = "4.4.0"
JAVA_MIN = 17
JARS_VARIABLE = "EACHPROMPT_KAFKA_JARS"
_POM = Path(__file__).with_name("pom.xml")
_CHECKOUT = Path(__file__).resolve().parents[2]


def jars_directory(directory: Path | None = None) -> Path:
    """The setting, else EACHPROMPT_KAFKA_JARS, else `.jars/kafka-VERSION` in the checkout (or the user's cache)."""
    if directory is not None:
        return directory
    if override := os.environ.get(JARS_VARIABLE):
        return Path(override)
    if (_CHECKOUT / "pyproject.toml").is_file():
        return _CHECKOUT / ".jars" / f"kafka-{KAFKA_VERSION}"
    return Path.home() / ".cache" / "eachprompt" / f"kafka-{KAFKA_VERSION}"


def find_jars(directory: Path | None = None) -> list[Path]:
    """Every jar, in a stable order (the class-data archive depends on it); empty when Kafka is not among them."""
    jars = sorted(jars_directory(directory).glob("*.jar"))
    return jars if any(jar.name.startswith("kafka_2.13-") for jar in jars) else []


@functools.cache
def java_version(java: str = "java") -> tuple[str, int] | None:
    """(path of the program, feature release such as 17), or None when it does not run; JAVA_HOME is the fallback."""
    program = shutil.which(java)
    if program is None and java == "java" and (home := os.environ.get("JAVA_HOME")):
        program = shutil.which(str(Path(home) / "bin" / "java"))
    if program is None:
        return None
    try:
        said = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=20, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(\d+)', said)
    return (program, int(found[1])) if found else None


def kafka_obstacle(settings: BrokerSettings) -> str | None:
    """Why Apache Kafka cannot run here, as the second half of a sentence, or None when it can."""
    java = java_version(settings.java)
    if java is None:
        return f"Java {JAVA_MIN}+ was not found (broker.java is {settings.java!r})"
    if java[1] < JAVA_MIN:
        return f"{java[0]} is Java {java[1]}; Kafka {KAFKA_VERSION} needs {JAVA_MIN}+"
    if not find_jars(settings.jars):
        return (
            f"its jars are not in {jars_directory(settings.jars)} (`python -m streams.broker.jars` gets them by Maven)"
        )
    return None


def archive_path(java: str, jars: list[Path]) -> Path:
    """Where the class-data archive of this very Java and these very jars is kept (it exists only when prepared)."""
    facts = [str(Path(java).resolve()), str(Path(java).resolve().stat().st_mtime_ns)]
    facts += [f"{jar.resolve()} {jar.stat().st_mtime_ns}" for jar in jars]
    return jars[0].parent / f"classes-{hashlib.sha256(' '.join(facts).encode()).hexdigest()[:16]}.jsa"


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
    # Imported here because the archive is made by starting Kafka, which itself asks this module for its jars.
    from streams.broker.class_archive import prepare_archive

    parser = argparse.ArgumentParser(prog="python -m streams.broker.jars", description=__doc__)
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
