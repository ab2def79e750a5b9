"""Foundations of every process of the service: settings, database, queue, logs."""
