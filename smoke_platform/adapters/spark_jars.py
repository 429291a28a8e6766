"""The jars that Spark needs beside those of pyspark: its connector for Kafka, and the list ``spark_jars.lock``.

Belongs here: which modules. Does not: how jars are resolved and checked (``adapters.jars``), the session they are for
(``adapters.spark``).

``python -m smoke_platform.adapters.spark_jars`` resolves anew and rewrites the list, for a change of the version.
"""

from __future__ import annotations

import sys
from pathlib import Path

from smoke_platform.adapters.jars import JarSet

#: The connector must be the one of the same version as pyspark, which setup.py pins.
SPARK_VERSION = "4.2.0"


CONNECTOR = JarSet(
    title=f"Spark {SPARK_VERSION}'s Kafka connector",
    folder_name=f"spark-kafka-{SPARK_VERSION}",
    purpose="the Kafka connector's",
    modules=(("org.apache.spark", "spark-sql-kafka-0-10_2.13", SPARK_VERSION),),
    lock_file=Path(__file__).with_name("spark_jars.lock"),
    writer="python -m smoke_platform.adapters.spark_jars",
    # pyspark brings these itself; two versions of one library would be worse than none.
    excluded=(
        ("org.apache.hadoop", "*"),
        ("org.scala-lang", "*"),
        ("org.scala-lang.modules", "*"),
        ("org.apache.spark", "spark-tags_2.13"),
        ("org.slf4j", "*"),
        ("org.xerial.snappy", "*"),
        ("at.yawk.lz4", "*"),
        ("org.lz4", "*"),
        ("com.google.code.findbugs", "*"),
    ),
)

if __name__ == "__main__":
    sys.exit(0 if CONNECTOR.write_lock() else 1)
