"""Everything that imports Dagster: assets, checks, jobs, schedules, sensors, partitions, resources."""
