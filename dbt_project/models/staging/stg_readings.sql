{{ config(materialized="table") }}

select
    {%- for column in reading_columns() %}
    "{{ column }}",
    {%- endfor %}
    count(*) over copies::bigint as copies
from {{ source("lake", "readings") }}
where {{ in_window() }}
window copies as (partition by device_id, event_time, "sequence")
qualify row_number() over (copies order by topic_id, "partition", "offset") = 1
