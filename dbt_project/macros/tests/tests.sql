{# Tests look at the days of this build only: the others were tested when they were built. One scan each. #}

{% test required_columns(model, columns) %}
select *
from (
    {%- for column in columns %}
    select '{{ column }}' as column_name, count(*) as missing
    from {{ model }} where {{ in_window() }} and "{{ column }}" is null
    {% if not loop.last %}union all{% endif %}
    {%- endfor %}
)
where missing > 0
{% endtest %}

{% test unique_together(model, columns) %}
{%- set key = get_quoted_csv(columns) -%}
select {{ key }}, count(*) as copies
from {{ model }}
where {{ in_window() }}
group by {{ key }}
having count(*) > 1
{% endtest %}

{% test known_values(model, column, values) %}
select "{{ column }}", count(*) as found
from {{ model }}
where {{ in_window() }} and "{{ column }}" not in ('{{ values | join("', '") }}')
group by all
{% endtest %}

{% macro out_of_range(model, suffix) %}
select *
from (
    {%- for sensor in sensors() %}
    {%- set value = '"' ~ sensor["name"] ~ suffix ~ '"' %}
    select
        '{{ sensor["name"] ~ suffix }}' as column_name, count(*) as outside,
        min({{ value }}) as least, max({{ value }}) as greatest
    from {{ model }}
    where {{ in_window() }} and {{ value }} not between {{ sensor["low"] }} and {{ sensor["high"] }}
    {% if not loop.last %}union all{% endif %}
    {%- endfor %}
)
where outside > 0
{% endmacro %}

{# The ranges are those by which readings are accepted: a row outside them did not come through landing. #}
{% test sensors_in_range(model) %}
{{ out_of_range(model, "") }}
{% endtest %}

{% test facts_in_range(model) %}
{%- for suffix in ["_min", "_max", "_mean"] %}
{{ out_of_range(model, suffix) }}
{% if not loop.last %}union all{% endif %}
{%- endfor %}
{% endtest %}

{# No reading is lost or counted twice between staging and a fact. #}
{% test counts_every_reading(model) %}
with facts as (
    select event_date, sum(readings) as readings, sum(duplicate_readings) as duplicates
    from {{ model }} where {{ in_window() }} group by event_date
),
staged as (
    select event_date, count(*) as readings, sum(copies - 1) as duplicates
    from {{ ref("stg_readings") }} where {{ in_window() }} group by event_date
)
select
    event_date, facts.readings as counted, staged.readings as staged,
    facts.duplicates as duplicates_counted, staged.duplicates as duplicates_staged
from facts full join staged using (event_date)
where facts.readings is distinct from staged.readings or facts.duplicates is distinct from staged.duplicates
{% endtest %}
