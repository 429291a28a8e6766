{{ config(materialized="table") }}

with readings as (
    select
        device_id, {{ minute_number("event_time") }} as minute_number, topic_id, "partition", "offset", late, ingest_time,
        {# As the engines count: late readings are not there, and cannot be the first of several copies. #}
        not late and row_number() over (
            partition by device_id, event_time, "sequence", late order by topic_id, "partition", "offset"
        ) = 1 as counts
    from {{ source("lake", "readings") }}
    where {{ in_windows_reach() }}
)
select
    readings.device_id,
    readings.minute_number,
    count(*) filter (not readings.late)::bigint as rows_in_time,
    count(*) filter (readings.counts)::bigint as readings,
    count(*) filter (readings.late)::bigint as late_readings,
    count(predictions.hits)::bigint as judged,
    count(predictions.score)::bigint as scored,
    sum(predictions.score)::double as score_sum,
    max(predictions.score)::double as score_max,
    coalesce(sum(bit_count(predictions.hits)), 0)::bigint as rule_hits,
    max(readings.ingest_time) filter (not readings.late) as last_ingest_time
from readings
left join {{ source("lake", "predictions") }} as predictions
    on readings.counts
    and readings.topic_id = predictions.topic_id
    and readings."partition" = predictions."partition"
    and readings."offset" = predictions."offset"
group by readings.device_id, readings.minute_number
