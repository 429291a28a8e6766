{# written by `python -m smoke_platform.adapters.warehouse_schema`: change the definitions there #}

{% macro sensors() %}{{ return([
    {"name": "temperature_c", "low": -60.0, "high": 300.0},
    {"name": "humidity_pct", "low": 0.0, "high": 100.0},
    {"name": "tvoc_ppb", "low": 0.0, "high": 65535.0},
    {"name": "eco2_ppm", "low": 0.0, "high": 65535.0},
    {"name": "raw_h2", "low": 0.0, "high": 65535.0},
    {"name": "raw_ethanol", "low": 0.0, "high": 65535.0},
    {"name": "pressure_hpa", "low": 300.0, "high": 1100.0},
    {"name": "pm1_0", "low": 0.0, "high": 100000.0},
    {"name": "pm2_5", "low": 0.0, "high": 100000.0},
    {"name": "nc0_5", "low": 0.0, "high": 100000.0},
    {"name": "nc1_0", "low": 0.0, "high": 100000.0},
    {"name": "nc2_5", "low": 0.0, "high": 100000.0},
    {"name": "co_ppm", "low": 0.0, "high": 100000.0}
]) }}{% endmacro %}

{% macro reading_columns() %}{{ return(["event_date", "device_id", "event_time", "temperature_c", "humidity_pct", "tvoc_ppb", "eco2_ppm", "raw_h2", "raw_ethanol", "pressure_hpa", "pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5", "co_ppm", "fire_alarm", "sequence", "schema_version", "source", "late", "topic", "topic_id", "partition", "offset", "append_time", "ingest_time", "replay_of"]) }}{% endmacro %}

{% macro feature_names() %}{{ return([
    "temperature_c",
    "humidity_pct",
    "tvoc_ppb",
    "eco2_ppm",
    "pm1_0",
    "pm2_5",
    "nc0_5",
    "nc1_0",
    "nc2_5",
    "co_ppm",
    "fine_fraction",
    "coarse_fraction",
    "temperature_c_rise",
    "humidity_pct_rise",
    "tvoc_ppb_rise",
    "eco2_ppm_rise",
    "raw_h2_rise",
    "raw_ethanol_rise",
    "pm1_0_rise",
    "pm2_5_rise",
    "nc0_5_rise",
    "co_ppm_rise",
    "temperature_c_score",
    "humidity_pct_score",
    "tvoc_ppb_score",
    "eco2_ppm_score",
    "raw_h2_score",
    "raw_ethanol_score",
    "pm1_0_score",
    "pm2_5_score",
    "nc0_5_score",
    "co_ppm_score",
    "temperature_c_rate",
    "humidity_pct_rate",
    "tvoc_ppb_rate",
    "eco2_ppm_rate",
    "raw_h2_rate",
    "raw_ethanol_rate",
    "pm1_0_rate",
    "pm2_5_rate",
    "nc0_5_rate",
    "co_ppm_rate",
    "smoke_and_gas",
    "smoke_and_heat",
    "smoke_and_co",
    "dry_heat",
    "raised_sensors"
]) }}{% endmacro %}

{% macro window_columns() %}{{ return(["event_date", "device_id", "window_start", "window_end", "revision", "record_count", "duplicate_count", "expected_count", "completeness", "label_count", "fire_label_count", "first_event_time", "last_event_time", "quality_score", "validity", "plausibility", "freshness", "level", "level_sensor", "temperature_c_mean", "temperature_c_std", "temperature_c_variance", "temperature_c_min", "temperature_c_max", "temperature_c_median", "temperature_c_p05", "temperature_c_p25", "temperature_c_p75", "temperature_c_p95", "temperature_c_range", "temperature_c_first", "temperature_c_last", "temperature_c_slope_per_min", "temperature_c_missing", "humidity_pct_mean", "humidity_pct_std", "humidity_pct_variance", "humidity_pct_min", "humidity_pct_max", "humidity_pct_median", "humidity_pct_p05", "humidity_pct_p25", "humidity_pct_p75", "humidity_pct_p95", "humidity_pct_range", "humidity_pct_first", "humidity_pct_last", "humidity_pct_slope_per_min", "humidity_pct_missing", "tvoc_ppb_mean", "tvoc_ppb_std", "tvoc_ppb_variance", "tvoc_ppb_min", "tvoc_ppb_max", "tvoc_ppb_median", "tvoc_ppb_p05", "tvoc_ppb_p25", "tvoc_ppb_p75", "tvoc_ppb_p95", "tvoc_ppb_range", "tvoc_ppb_first", "tvoc_ppb_last", "tvoc_ppb_slope_per_min", "tvoc_ppb_missing", "eco2_ppm_mean", "eco2_ppm_std", "eco2_ppm_variance", "eco2_ppm_min", "eco2_ppm_max", "eco2_ppm_median", "eco2_ppm_p05", "eco2_ppm_p25", "eco2_ppm_p75", "eco2_ppm_p95", "eco2_ppm_range", "eco2_ppm_first", "eco2_ppm_last", "eco2_ppm_slope_per_min", "eco2_ppm_missing", "raw_h2_mean", "raw_h2_std", "raw_h2_variance", "raw_h2_min", "raw_h2_max", "raw_h2_median", "raw_h2_p05", "raw_h2_p25", "raw_h2_p75", "raw_h2_p95", "raw_h2_range", "raw_h2_first", "raw_h2_last", "raw_h2_slope_per_min", "raw_h2_missing", "raw_ethanol_mean", "raw_ethanol_std", "raw_ethanol_variance", "raw_ethanol_min", "raw_ethanol_max", "raw_ethanol_median", "raw_ethanol_p05", "raw_ethanol_p25", "raw_ethanol_p75", "raw_ethanol_p95", "raw_ethanol_range", "raw_ethanol_first", "raw_ethanol_last", "raw_ethanol_slope_per_min", "raw_ethanol_missing", "pressure_hpa_mean", "pressure_hpa_std", "pressure_hpa_variance", "pressure_hpa_min", "pressure_hpa_max", "pressure_hpa_median", "pressure_hpa_p05", "pressure_hpa_p25", "pressure_hpa_p75", "pressure_hpa_p95", "pressure_hpa_range", "pressure_hpa_first", "pressure_hpa_last", "pressure_hpa_slope_per_min", "pressure_hpa_missing", "pm1_0_mean", "pm1_0_std", "pm1_0_variance", "pm1_0_min", "pm1_0_max", "pm1_0_median", "pm1_0_p05", "pm1_0_p25", "pm1_0_p75", "pm1_0_p95", "pm1_0_range", "pm1_0_first", "pm1_0_last", "pm1_0_slope_per_min", "pm1_0_missing", "pm2_5_mean", "pm2_5_std", "pm2_5_variance", "pm2_5_min", "pm2_5_max", "pm2_5_median", "pm2_5_p05", "pm2_5_p25", "pm2_5_p75", "pm2_5_p95", "pm2_5_range", "pm2_5_first", "pm2_5_last", "pm2_5_slope_per_min", "pm2_5_missing", "nc0_5_mean", "nc0_5_std", "nc0_5_variance", "nc0_5_min", "nc0_5_max", "nc0_5_median", "nc0_5_p05", "nc0_5_p25", "nc0_5_p75", "nc0_5_p95", "nc0_5_range", "nc0_5_first", "nc0_5_last", "nc0_5_slope_per_min", "nc0_5_missing", "nc1_0_mean", "nc1_0_std", "nc1_0_variance", "nc1_0_min", "nc1_0_max", "nc1_0_median", "nc1_0_p05", "nc1_0_p25", "nc1_0_p75", "nc1_0_p95", "nc1_0_range", "nc1_0_first", "nc1_0_last", "nc1_0_slope_per_min", "nc1_0_missing", "nc2_5_mean", "nc2_5_std", "nc2_5_variance", "nc2_5_min", "nc2_5_max", "nc2_5_median", "nc2_5_p05", "nc2_5_p25", "nc2_5_p75", "nc2_5_p95", "nc2_5_range", "nc2_5_first", "nc2_5_last", "nc2_5_slope_per_min", "nc2_5_missing"]) }}{% endmacro %}

{% macro window_sensors() %}{{ return(["temperature_c", "humidity_pct", "tvoc_ppb", "eco2_ppm", "raw_h2", "raw_ethanol", "pressure_hpa", "pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5"]) }}{% endmacro %}

{# How far a window that begins in the last minute of a day reaches into the next one. #}
{% macro window_reach_s() %}{{ return(240) }}{% endmacro %}
