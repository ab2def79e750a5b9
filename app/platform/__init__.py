"""What every process of the service stands on: settings, database, queue, logs."""
