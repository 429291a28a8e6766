"""The jars of the embedded broker: which version of Kafka, and the committed list ``kafka_jars.lock``.

Belongs here: the version. Does not: how jars are resolved and checked (``adapters.jars``), running a
broker (broker.py).

``python -m smoke_platform.local.jars`` resolves anew and rewrites the list, for a change of the version.
"""

from __future__ import annotations

import sys
from pathlib import Path

from smoke_platform.adapters.jars import JarSet

KAFKA_VERSION = "4.4.0"
BROKER = JarSet(
    title=f"Kafka {KAFKA_VERSION}",
    folder_name=f"kafka-{KAFKA_VERSION}",
    purpose="the broker's",
    modules=(
        ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
        # Lets the broker's log calls reach log4j, as in Kafka's own archive.
        ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.5"),
    ),
    lock_file=Path(__file__).with_name("kafka_jars.lock"),
    writer="python -m smoke_platform.local.jars",
)

if __name__ == "__main__":
    sys.exit(0 if BROKER.write_lock() else 1)
