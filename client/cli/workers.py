"""`temper workers`: the workers of the instance."""

from client.cli.output import Output, connect, show


def workers(output: Output = "text") -> None:
    """List the workers, what each has and what it works on; takes a key with the scope admin."""
    from client.display.workers import workers_table

    with connect() as temper:
        found = list(temper.workers())
    show(found, workers_table, output)
