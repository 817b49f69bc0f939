"""Stores: the service's own database. Adapters; each opens with its `open_…` function."""
