"""Names that several subjects share: asset groups and keys, jobs, pools and tags.

Every asset is reached through a key of this module, so that a typing slip is an import error.
"""

from __future__ import annotations

import dagster as dg

GROUP_LANDING = "landing"
GROUP_FEATURES = "features"
GROUP_MODELS = "models"
GROUP_MONITORING = "monitoring"

TOPIC_READINGS = dg.AssetKey(["kafka", "smoke_sensor_data"])
TOPIC_DEAD_LETTERS = dg.AssetKey(["kafka", "smoke_dead_letters"])
READINGS = dg.AssetKey(["lake", "readings"])
#: Tables that are landed beside the readings, each from the topic of the same name.
RECORDS = {name: dg.AssetKey(["lake", name]) for name in ("alarms", "alarm_commands", "predictions", "devices")}
TOPICS_OF_RECORDS = {name: dg.AssetKey(["kafka", f"smoke_{name}"]) for name in RECORDS}
#: What engine ``local`` appends beside the readings.
WINDOWS = dg.AssetKey(["lake", "window_statistics"])
FEATURES = dg.AssetKey(["lake", "features"])
SIMULATED_READINGS = dg.AssetKey(["lake", "simulated_readings"])
TRAINING_EXAMPLES = dg.AssetKey(["warehouse", "training_examples"])
DATA_AUDIT = dg.AssetKey(["models", "data_audit"])
CANDIDATE_MODEL = dg.AssetKey(["models", "candidate"])
CHAMPION_MODEL = dg.AssetKey(["models", "champion"])
EXTERNAL_VALIDATION = dg.AssetKey(["models", "external_validation"])
CHALLENGER_MODEL = dg.AssetKey(["models", "challenger"])
SHADOW_COMPARISON = dg.AssetKey(["models", "shadow_comparison"])
DRIFT_REPORT = dg.AssetKey(["monitoring", "drift_report"])
DATA_QUALITY = dg.AssetKey(["monitoring", "data_quality"])
MODEL_PERFORMANCE = dg.AssetKey(["monitoring", "model_performance"])
HISTORY = dg.AssetKey(["monitoring", "history"])

JOB_LANDING = "landing_job"
JOB_BATCH = "batch_job"
JOB_TRAINING = "training_job"
JOB_SHADOW = "shadow_comparison_job"
JOB_ROLLBACK = "rollback_job"
JOB_QUALITY = "data_quality_job"
JOB_PERFORMANCE = "model_performance_job"
JOB_HISTORY = "history_job"
JOB_DRIFT = "drift_job"
JOB_PRUNE = "prune_event_log_job"

#: One run at a time may open the warehouse's file, and one MLflow's store.
POOL_WAREHOUSE = "warehouse"
POOL_REGISTRY = "registry"

#: Every job but landing carries it; dagster.yaml leaves landing a slot of its own.
KIND_TAG = "smoke/kind"
BATCH_TAGS = {KIND_TAG: "batch"}
LANDING_TAGS = {KIND_TAG: "landing"}
