"""Every span, attribute and metric name in one place.

Spans follow the `rl.*` proposal and OpenTelemetry's messaging conventions.
"""

from typing import Final

# Spans
SAMPLE: Final = "rl.sample"
REWARD: Final = "rl.reward"
TRAIN: Final = "rl.train"
SYNC: Final = "rl.sync"
PUBLISH: Final = "rl.publish"


def send(topic: str) -> str:
    """The span of writing to `topic`."""
    return f"send {topic}"


def process(topic: str) -> str:
    """The span of working on records of `topic`."""
    return f"process {topic}"


# Attributes
SYSTEM: Final = "messaging.system"
DESTINATION: Final = "messaging.destination.name"
PARTITION: Final = "messaging.destination.partition.id"
OFFSET: Final = "messaging.kafka.offset"
RUN: Final = "eachprompt.run"
STAGE: Final = "eachprompt.stage"
GROUP: Final = "rl.group_id"
ROLLOUT: Final = "rl.rollout_id"
TOKENS: Final = "rl.tokens"
VERSION: Final = "rl.weights.version"
STEP: Final = "rl.step"
RECORDS: Final = "messaging.batch.message_count"

# Record headers
TRACEPARENT: Final = "traceparent"
SCHEMA: Final = "schema"
RUN_HEADER: Final = "run"
DLQ_ATTEMPTS: Final = "dlq-attempts"
DLQ_HISTORY: Final = "dlq-history"
