"""Threats that no training prepares for: attacks other than l_p balls, and common corruptions.

The attacks have the contract of `core.attacks`, and what they may do to an image is a threat of their own. Their random
numbers are `core.threats.random_numbers`, so that a result does not depend on the batch that a point is in.
"""
