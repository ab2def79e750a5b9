"""Jobs: life cycle, leases, shards, ingest of events, queries, estimates. No HTTP in it."""
