#!/bin/sh
# Run once by the PostgreSQL image, on an empty volume. The registry has a database of its own, because MLflow and
# Dagster both keep a table named "runs".
set -eu
createdb --username "$POSTGRES_USER" "${POSTGRES_DB}_mlflow"
