"""The part of the library that needs no torch: specs, events, reports, and the catalogue of what exists by name.

It is the only part of `core` that the service, the worker and the client import.
"""
