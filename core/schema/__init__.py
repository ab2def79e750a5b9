"""The part of the library that needs no torch: what a run is, what it reports, and what exists by name.

It is the only part of `core` that the service, the worker and the client import.
"""
