"""A durable log on SQL: what the embedded broker and the PostgreSQL broker have in common, which is nearly all of it.

A database offers a `Home`: statements, one write turn, a clock that judges leases, and a way to wake others up.
"""
