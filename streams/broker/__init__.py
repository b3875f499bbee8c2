"""Brokers of one machine, and the cluster of many, behind one small interface.

    broker = open_broker(BrokerSettings(kind="auto", ephemeral=True), Path("runs/one"))
    broker.start(deadline_s=60)      # ready for clients, groups and transactions
    broker.bootstrap                 # "127.0.0.1:23456"
    broker.stop(deadline_s=10)

Each kind's guarantees are stated by the contract suite, tests/streams/broker/test_contract.py.
"""

from streams.broker.base import Broker, BrokerConfigurationError, BrokerError
from streams.broker.endpoint import Endpoint, find_endpoint
from streams.broker.opening import choose_kind, open_broker, running_broker
from streams.broker.settings import BrokerSettings

__all__ = [
    "Broker",
    "BrokerConfigurationError",
    "BrokerError",
    "BrokerSettings",
    "Endpoint",
    "choose_kind",
    "find_endpoint",
    "open_broker",
    "running_broker",
]
