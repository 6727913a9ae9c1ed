"""The hands beside the server: Celery tasks, the relay that wakes them, the ticks and the operator's command."""
