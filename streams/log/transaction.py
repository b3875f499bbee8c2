"""Transactions: a stage's outputs and the offsets it consumed become visible together."""

import asyncio
from collections.abc import Mapping, Sequence

from aiokafka.errors import KafkaError, ProducerFenced
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from schemas import Ref
from streams.cancellation import owned
from streams.errors import BrokerAwayError, DeliveryError, FencedError
from streams.faults import reach
from streams.log.aiokafka_fixes import ABANDON_S, stop_producer
from streams.log.clients import Log, enqueue
from streams.log.retry import started
from streams.record import Output


class TransactionalWriter:
    """One transactional producer: outputs and consumed offsets become visible together or not at all.

    `open` fences every predecessor with the same id and waits until its last transaction is decided, so what is read
    as committed afterwards is final. After any error the writer is unusable: the service ends and is started again,
    which rebuilds its state from the log.
    """

    def __init__(self, log: Log, transactional_id: str) -> None:
        self._log = log
        self._id = transactional_id
        self._producer = log.producer(transactional_id)

    async def open(self) -> None:
        """Fence the predecessor. BrokerAwayError."""
        settings = self._log.settings
        try:
            await started(self._producer.start, settings.bootstrap, settings.call_timeout_s)
        except BaseException:
            await stop_producer(self._producer, ABANDON_S)
            raise

    async def close(self) -> None:
        """Stop the producer; an open transaction is left to the broker to abort."""
        await stop_producer(self._producer, 5.0)

    async def write(
        self,
        outputs: Sequence[Output],
        group: str | None = None,
        offsets: Mapping[tuple[str, int], tuple[int, str]] | None = None,
    ) -> list[Ref]:
        """One transaction: `outputs`, and `offsets` by topic and partition for `group`. Where the outputs are.

        FencedError: a successor took over. DeliveryError, BrokerAwayError: nothing became visible.
        """
        timeout = self._log.settings.call_timeout_s
        try:
            async with asyncio.timeout(timeout):
                return await owned(self._write(outputs, group, offsets or {}), f"a transaction of {self._id}")
        except TimeoutError as error:
            raise BrokerAwayError(f"for a transaction of {self._id}", timeout) from error
        except ProducerFenced as error:
            raise FencedError(f"another instance of {self._id} has taken over") from error
        except KafkaError as error:
            raise DeliveryError(f"transaction of {self._id} failed: {type(error).__name__} {error}") from error

    async def _write(
        self, outputs: Sequence[Output], group: str | None, offsets: Mapping[tuple[str, int], tuple[int, str]]
    ) -> list[Ref]:
        await self._producer.begin_transaction()
        reach("transaction.begun")
        # commit_transaction() succeeds even if a send in it failed: every delivery is awaited first.
        deliveries = [await enqueue(self._log, self._producer, output) for output in outputs]
        written = [await delivery for delivery in deliveries]
        if group is not None and offsets:
            entries = {
                TopicPartition(self._log.full(topic), partition): OffsetAndMetadata(offset, metadata)
                for (topic, partition), (offset, metadata) in offsets.items()
            }
            await self._producer.send_offsets_to_transaction(entries, group)
        reach("transaction.sent")
        await self._producer.commit_transaction()
        reach("transaction.committed")
        return [
            Ref(output.topic, metadata.partition, metadata.offset)
            for output, metadata in zip(outputs, written, strict=True)
        ]
