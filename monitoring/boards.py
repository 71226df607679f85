"""The dashboards: one for HTTP, one for jobs and tasks, one for pdc itself."""

from __future__ import annotations

from .panels import (
    QUANTILES,
    Dashboard,
    Variable,
    graph,
    heat_map,
    observed,
    quantile,
    quantiles,
    rate,
    row,
    share,
    stat,
    table,
)

LIBRARIES = ("celery", "rq", "dramatiq")
"""Queues of tasks, by the first word of the names of their metrics."""
REQUESTS = "http_requests_total{HTTP}"
ERRORS = 'http_requests_total{HTTP, status=~"5.."}'
REFUSED = 'http_requests_total{HTTP, status=~"4.."}'
DURATION = "http_request_duration_seconds{HTTP}"
PROCESSES = "process_start_time_seconds{OURS}"
HITS = rate("django_cache_hits_total{JOB}", "alias")
MISSES = rate("django_cache_misses_total{JOB}", "alias")

HTTP_ROWS = (
    row(
        "Now",
        stat("Requests", "Requests that ended, per second.", "reqps", f"sum(rate({REQUESTS}[RATE]))"),
        stat(
            "Errors",
            "The part of the requests with a status from 500 on.",
            "percentunit",
            f"(sum(rate({ERRORS}[RATE])) or vector(0)) / sum(rate({REQUESTS}[RATE]))",
            (0.001, "orange"),
            (0.01, "red"),
        ),
        stat(
            "p50",
            "Half of the requests take no longer, up to the last byte of the answer.",
            "s",
            quantile(0.5, DURATION),
        ),
        stat(
            "p99",
            "99 % of the requests take no longer, up to the last byte of the answer.",
            "s",
            quantile(0.99, DURATION),
            (0.5, "orange"),
            (2.5, "red"),
        ),
        stat("In progress", "Requests in progress.", "short", "sum(http_requests_in_progress{METHOD})"),
        stat("Processes", "Living processes (PDC_PROCESS_METRICS).", "short", f"count({PROCESSES})"),
    ),
    row(
        "Routes",
        table(
            "Routes",
            "Each route. <unmatched> has the paths that no route matches.",
            (rate(REQUESTS, "route"), "Requests", "reqps"),
            (f"{share(ERRORS, REQUESTS, 'route')} or 0 * {rate(REQUESTS, 'route')}", "Errors", "percentunit"),
            *((quantile(at, DURATION, "route"), name, "s") for name, at in QUANTILES.items()),
        ),
        graph("Requests by route", "Requests that ended, per second.", "reqps", (rate(REQUESTS, "route"), "{{route}}")),
        graph("Requests by status", "Requests that ended, per second.", "reqps", (rate(REQUESTS, "status"), "{{status}}")),
        graph(
            "Requests by method",
            "Requests that ended, per second. <other> has methods that HTTP does not have.",
            "reqps",
            (rate(REQUESTS, "method"), "{{method}}"),
        ),
    ),
    row(
        "Errors",
        graph(
            "Errors by route",
            "The part of the requests with a status from 500 on. A route that never had one has no line.",
            "percentunit",
            (share(ERRORS, REQUESTS, "route"), "{{route}}"),
        ),
        graph(
            "Refused by route",
            "The part of the requests with a status from 400 to 499.",
            "percentunit",
            (share(REFUSED, REQUESTS, "route"), "{{route}}"),
        ),
        graph(
            "Exceptions",
            "Exceptions that left a view, per second, also those that a handler of the application answered.",
            "ops",
            (rate("http_exceptions_total{HTTP}", "route, exception"), "{{exception}} {{route}}"),
        ),
    ),
    row(
        "Latency",
        quantiles(
            "Duration", "From the start of a request to the last byte of its answer. A stream counts whole.", "s", DURATION
        ),
        graph(
            "p90 by route",
            "90 % of the requests of the route take no longer.",
            "s",
            (quantile(0.9, DURATION, "route"), "{{route}}"),
        ),
        quantiles(
            "Time to first byte",
            "From the start of a request to the start of its answer (PDC_FIRST_BYTE).",
            "s",
            "http_response_start_seconds{HTTP}",
        ),
        heat_map("Durations", "Requests by duration, of the chosen routes together.", "s", DURATION)._replace(width=24),
    ),
    row(
        "Durations by route",
        heat_map("Durations of $route", "Requests by duration, one map for each chosen route.", "s", DURATION)._replace(
            repeat="route"
        ),
        folded=True,
    ),
    row(
        "In progress, and sizes",
        graph(
            "In progress",
            "Requests in progress, of all living processes. PDC_IN_PROGRESS_BY_ROUTE shows their routes.",
            "short",
            ("sum by (method, route) (http_requests_in_progress{METHOD})", "{{method}} {{route}}"),
        ),
        graph(
            "Bytes",
            "Bytes of bodies per second (PDC_SIZES).",
            "Bps",
            (observed("sum", "http_request_size_bytes{HTTP}"), "received"),
            (observed("sum", "http_response_size_bytes{HTTP}"), "sent"),
        ),
        graph(
            "p99 of answers",
            "99 % of the answers of the route are no larger (PDC_SIZES).",
            "bytes",
            (quantile(0.99, "http_response_size_bytes{HTTP}", "route"), "{{route}}"),
        ),
    ),
    row(
        "Workers (PDC_PROCESS_METRICS)",
        graph(
            "Processes",
            "Living processes, and those that started in the last 10 minutes: many where workers are killed or recycled.",
            "short",
            (f"count by (host) ({PROCESSES})", "{{host}}"),
            (f"sum by (host) ({PROCESSES} > bool time() - 600)", "new on {{host}}"),
        ),
        graph("Processors", "Processors in use.", "short", (rate("process_cpu_seconds_total{OURS}", "host"), "{{host}}")),
        graph(
            "Memory",
            "Resident memory of the five largest processes.",
            "bytes",
            ("topk(5, process_resident_memory_bytes{OURS})", "{{host}} {{pid}}"),
        ),
    ),
    row(
        "WebSockets",
        graph(
            "Connections",
            "Open connections of Starlette and FastAPI, of all living processes.",
            "short",
            ("sum by (job) (websocket_connections_in_progress{JOB})", "{{job}}"),
        ),
        graph(
            "New connections, and exceptions",
            "Connections that were accepted, and exceptions that left a view, per second.",
            "ops",
            (rate("websocket_connections_total{ROUTE}", "route"), "{{route}}"),
            (rate("websocket_exceptions_total{ROUTE}", "route, exception"), "{{exception}} {{route}}"),
        ),
        quantiles("Time open", "From the acceptance of a connection to its end.", "s", "websocket_duration_seconds{ROUTE}"),
        folded=True,
    ),
    row(
        "Databases and caches of Django",
        graph(
            "Queries, and errors",
            "Database queries, and those that raised, per second.",
            "ops",
            (rate("django_db_queries_total{JOB}", "alias"), "{{alias}}"),
            (rate("django_db_query_errors_total{JOB}", "alias, exception"), "{{exception}} {{alias}}"),
        ),
        quantiles("Duration of queries", "The time of a database query.", "s", "django_db_query_duration_seconds{JOB}"),
        graph(
            "Hits",
            "The part of the look-ups that the cache answered (PDC_DJANGO_CACHES).",
            "percentunit",
            (f"{HITS} / ({HITS} + {MISSES})", "{{alias}}"),
        ),
        folded=True,
    ),
)

HTTP = Dashboard(
    "pdc-http",
    "pdc: HTTP",
    "Requests of Flask, Django, Starlette and FastAPI, as prometheus-distributed-client counts them.",
    (
        Variable("job", "Job", "label_values(http_requests_total, job)"),
        Variable("route", "Route", "label_values(http_requests_total{JOB}, route)"),
        Variable("method", "Method", "label_values(http_requests_total{ROUTE}, method)"),
    ),
    HTTP_ROWS,
)

OF_RUNS = "job_duration_seconds{RUNS}", "job_name"

JOBS_ROWS = (
    row(
        "Jobs",
        table(
            "Jobs",
            "Each job: its last start and success, and its runs of a day.",
            ("time() - max by (job_name) (job_last_start_timestamp_seconds{RUNS})", "Since the last start", "s"),
            ("time() - max by (job_name) (job_last_success_timestamp_seconds{RUNS})", "Since the last success", "s"),
            ('sum by (job_name) (increase(job_runs_total{RUNS, outcome="success"}[1d]))', "Successes", "short"),
            ('sum by (job_name) (increase(job_runs_total{RUNS, outcome="failure"}[1d]))', "Failures", "short"),
            ("sum by (job_name) (job_runs_in_progress{RUNS})", "In progress", "short"),
        ),
        graph(
            "Since the last success",
            "Zero at each success. A line that goes on rising is a job that fails, or that nobody starts.",
            "s",
            ("time() - max by (job_name) (job_last_success_timestamp_seconds{RUNS})", "{{job_name}}"),
        ),
        graph(
            "Runs",
            "Runs that ended in the hour before.",
            "short",
            ("sum by (job_name, outcome) (increase(job_runs_total{RUNS}[1h]))", "{{job_name}} {{outcome}}"),
        ),
        graph(
            "Duration",
            "The mean time of the runs that ended in the hour before.",
            "s",
            (f"{observed('sum', *OF_RUNS, '1h')} / {observed('count', *OF_RUNS, '1h')}", "{{job_name}}"),
        ),
        graph(
            "p90 of a day",
            "90 % of the runs that ended in the day before took no longer.",
            "s",
            (quantile(0.9, *OF_RUNS, "1d"), "{{job_name}}"),
        ),
        graph(
            "In progress",
            "Runs that go on, of all living processes.",
            "short",
            ("sum by (job_name) (job_runs_in_progress{RUNS})", "{{job_name}}"),
        ),
        graph(
            "Items",
            "Items that runs counted in the hour before, by their result.",
            "short",
            ("sum by (job_name, result) (increase(job_items_total{RUNS}[1h]))", "{{job_name}} {{result}}"),
        ),
    ),
    row(
        "Queues of $library",
        graph(
            "Sent, and received",
            "Tasks per second that processes sent to the queue, and that workers received from it.",
            "ops",
            (rate("LIBRARY_tasks_sent_total{TASKS}", "queue"), "sent {{queue}}"),
            (rate("LIBRARY_tasks_received_total{TASKS}", "queue"), "received {{queue}}"),
        ),
        graph(
            "Messages",
            "Messages that wait at the broker (queue_length=True).",
            "short",
            ("max by (queue) (LIBRARY_queue_messages{QUEUES})", "{{queue}}"),
        ),
        graph(
            "Workers",
            "Workers that consume the queue.",
            "short",
            ("sum by (queue) (LIBRARY_queue_workers{QUEUES})", "{{queue}}"),
        ),
        quantiles(
            "Time in the queue", "From when a task was due until it started.", "s", "LIBRARY_task_queue_time_seconds{TASKS}"
        ),
        graph(
            "p90 of the time in the queue",
            "90 % of the tasks of the queue waited no longer.",
            "s",
            (quantile(0.9, "LIBRARY_task_queue_time_seconds{TASKS}", "queue"), "{{queue}}"),
        ),
        graph(
            "In progress",
            "Tasks that run, of all living processes.",
            "short",
            ("sum by (task) (LIBRARY_tasks_in_progress{TASKS})", "{{task}}"),
        ),
    ),
    row(
        "Tasks of $library",
        graph(
            "Attempts by state",
            "Attempts that ended, per second.",
            "ops",
            (rate("LIBRARY_tasks_total{TASKS}", "state"), "{{state}}"),
        ),
        graph(
            "Failures",
            "The part of the attempts that failed.",
            "percentunit",
            (share('LIBRARY_tasks_total{TASKS, state="failure"}', "LIBRARY_tasks_total{TASKS}", "task"), "{{task}}"),
        ),
        graph(
            "Exceptions",
            "Exceptions with which attempts ended, per second.",
            "ops",
            (rate("LIBRARY_task_exceptions_total{TASKS}", "task, exception"), "{{exception}} {{task}}"),
        ),
        quantiles("Duration", "The time of an attempt.", "s", "LIBRARY_task_duration_seconds{TASKS}"),
        graph(
            "p90 by task",
            "90 % of the attempts took no longer.",
            "s",
            (quantile(0.9, "LIBRARY_task_duration_seconds{TASKS}", "task"), "{{task}}"),
        ),
        heat_map("Durations", "Attempts by their time.", "s", "LIBRARY_task_duration_seconds{TASKS}"),
    ),
)

JOBS = Dashboard(
    "pdc-jobs",
    "pdc: jobs and tasks",
    "Runs of pdc.job, and tasks of Celery, RQ and Dramatiq, as prometheus-distributed-client counts them.",
    (
        Variable("job", "Job", 'label_values({__name__=~"job_runs_total|.+_tasks_total"}, job)'),
        Variable("job_name", "Name of the job", "label_values(job_runs_total{JOB}, job_name)"),
        Variable(
            "library",
            "Library",
            f"""label_values({{__name__=~"({"|".join(LIBRARIES)})_tasks_in_progress"}}, __name__)""",
            "/(.*)_tasks_in_progress/",
        ),
        Variable("queue", "Queue", "label_values(LIBRARY_tasks_total{JOB}, queue)"),
        Variable("task", "Task", "label_values(LIBRARY_tasks_total{QUEUES}, task)"),
    ),
    JOBS_ROWS,
)

HEALTH_ROWS = (
    row(
        "Now: all of these should be green",
        stat(
            "Targets that fail",
            "Targets whose last scrape failed: the application is down, or it answers 503, since the storage is.",
            "short",
            "count(up{JOB}) - sum(up{JOB})",
            (1, "red"),
        ),
        stat(
            "Processes that cannot write",
            "Targets whose process could not write to one of its storages.",
            "short",
            "sum(pdc_storage_up{JOB} == bool 0)",
            (1, "red"),
        ),
        stat(
            "Since the last flush",
            "The time since any process wrote. A web application with living workers writes every 5 s.",
            "s",
            "time() - max(pdc_last_flush_timestamp_seconds{JOB})",
            (15, "orange"),
            (60, "red"),
        ),
        stat(
            "Series that wait",
            "Series in the memory of the process that answers, which a storage does not take.",
            "short",
            "sum(pdc_series_pending{JOB})",
            (1, "red"),
        ),
        stat(
            "Metrics left out",
            "Metrics that no scrape shows, since two programs use the same name, or a later version of pdc wrote them.",
            "short",
            "max(pdc_families_hidden{JOB})",
            (1, "orange"),
        ),
        stat(
            "Collectors that fail",
            "Collectors of other registries that raised in the last scrape, which then shows none of their metrics.",
            "short",
            "sum(pdc_collectors_failed{JOB})",
            (1, "orange"),
        ),
    ),
    row(
        "Outages and losses",
        graph(
            "Storage",
            "1 where the process that answers can write, and where the scrape did not fail.",
            "short",
            ("pdc_storage_up{JOB}", "storage of {{instance}}"),
            ("up{JOB}", "scrape of {{instance}}"),
        ),
        graph(
            "Series that wait",
            "Series in the memory of the process that answers, which a storage does not take.",
            "short",
            ("pdc_series_pending{JOB}", "{{instance}}"),
        ),
        graph(
            "Batches sent again",
            "Batches that were sent again after an error, in the 5 minutes before. Each counts once.",
            "short",
            ("sum by (job) (increase(pdc_batches_retried_total{JOB}[5m]))", "{{job}}"),
        ),
        graph(
            "Updates over the limit",
            "Updates that counted as <overflow> in the 5 minutes before: their metric has max_series series.",
            "short",
            ("sum by (job) (increase(pdc_series_refused_total{JOB}[5m]))", "{{job}}"),
        ),
        graph(
            "Messages that were not logged",
            "Messages of pdc in the 5 minutes before, where a filter or handler of the log raised or did not return.",
            "short",
            ("sum by (job) (increase(pdc_log_messages_lost_total{JOB}[5m]))", "{{job}}"),
        ),
        graph(
            "Metrics and collectors left out",
            "Metrics that share a name, and collectors that raised.",
            "short",
            ("max by (job) (pdc_families_hidden{JOB})", "metrics of {{job}}"),
            ("max by (job) (pdc_collectors_failed{JOB})", "collectors of {{job}}"),
        ),
    ),
    row(
        "Writes",
        quantiles(
            "Duration of flushes",
            "From the first try to write a batch until the storage had it. After an outage: the length of the outage.",
            "s",
            "pdc_flush_duration_seconds{JOB}",
        ),
        heat_map("Durations of flushes", "Batches by that time.", "s", "pdc_flush_duration_seconds{JOB}"),
        graph(
            "Batches",
            "Batches per second that all processes wrote.",
            "ops",
            (rate("pdc_flush_duration_seconds_count{JOB}", "job"), "{{job}}"),
        ),
    ),
    row(
        "Scrapes",
        graph("Duration of scrapes", "The time that Prometheus waits.", "s", ("scrape_duration_seconds{JOB}", "{{instance}}")),
        graph(
            "Samples",
            "Samples of the last scrape: the size of the page.",
            "short",
            ("scrape_samples_scraped{JOB}", "{{instance}}"),
        ),
        graph(
            "Targets",
            "Targets by job. Two of one storage show the same numbers, and sums are twice too large.",
            "short",
            ("count by (job) (up{JOB})", "{{job}}"),
        ),
    ),
    row(
        "Processes (PDC_PROCESS_METRICS)",
        graph("Processes", "Living processes.", "short", (f"count by (host) ({PROCESSES})", "{{host}}")),
        graph("Processors", "Processors in use.", "short", (rate("process_cpu_seconds_total{OURS}", "host"), "{{host}}")),
        graph(
            "Memory",
            "Resident memory of all processes of the host.",
            "bytes",
            ("sum by (host) (process_resident_memory_bytes{OURS})", "{{host}}"),
        ),
    ),
)

HEALTH = Dashboard(
    "pdc-health",
    "pdc: health",
    "The storage of prometheus-distributed-client, and the processes that write to it.",
    (Variable("job", "Job", "label_values(pdc_last_flush_timestamp_seconds, job)"),),
    HEALTH_ROWS,
)

DASHBOARDS = (HTTP, JOBS, HEALTH)
