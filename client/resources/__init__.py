"""Resources of the service, one class each: `temper.jobs`, `temper.datasets` and so on."""
