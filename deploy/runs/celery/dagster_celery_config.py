"""Settings of Celery's workers: dagster-celery imports this module by its name, from a folder on PYTHONPATH."""  # noqa: INP001

import os

broker_url = os.environ["DAGSTER_CELERY_BROKER"]
result_backend = os.environ["DAGSTER_CELERY_BACKEND"]
#: A process for each run: it knows the feeds that there are now, and gives back all of its memory at the end.
worker_max_tasks_per_child = 1
#: A run that waits in the queue can be taken by any worker; it should not wait behind another one's work.
worker_prefetch_multiplier = 1
#: Redis hands a message out again after so many seconds (an hour by default) while no worker has taken it.
broker_transport_options = {"visibility_timeout": 86_400}
