"""Apache Kafka's jars: where they are, and whether this machine can run them (`streams.broker.install` gets them)."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from streams.broker.settings import BrokerSettings

KAFKA_VERSION = "4.4.0"
JAVA_MIN = 17
JARS_VARIABLE = "EACHPROMPT_KAFKA_JARS"
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
        return f"its jars are not in {jars_directory(settings.jars)} (`python -m streams.broker.install` gets them)"
    return None


def archive_path(java: str, jars: list[Path]) -> Path:
    """Where the class-data archive of this very Java and these very jars is kept (it exists only when prepared)."""
    facts = [str(Path(java).resolve()), str(Path(java).resolve().stat().st_mtime_ns)]
    facts += [f"{jar.resolve()} {jar.stat().st_mtime_ns}" for jar in jars]
    return jars[0].parent / f"classes-{hashlib.sha256(' '.join(facts).encode()).hexdigest()[:16]}.jsa"
