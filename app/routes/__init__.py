"""One file per noun of the API. A route gets, asks `app.jobs`, and returns the row."""
