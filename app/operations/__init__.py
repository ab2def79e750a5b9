"""Operation of an instance: maintenance, metrics, diagnosis, backup, migration."""
