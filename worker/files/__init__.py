"""The files of an attempt: what it fetches and keeps on this machine, and what it sends to the object store."""
