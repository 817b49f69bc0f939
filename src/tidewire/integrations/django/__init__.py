"""Tidewire in a Django project: ``INSTALLED_APPS = [..., "tidewire.integrations.django"]``.

Settings, all in one dictionary::

    TIDEWIRE = {
        "SOURCE": "shop",                          # the name of the service that the project is
        "BROKER": "sqlite:///var/broker.db",       # where its events go
        "DATABASE": "default",                     # which of DATABASES has the store
        "STORE": "postgresql://…?schema=events",   # only where the store is not found by that alone
    }

`publish` writes an event in the transaction of ``transaction.atomic()``. ``manage.py tidewire upgrade`` makes the
tables, ``manage.py tidewire run shop.billing:billing`` runs a service whose ``def`` handlers use the ORM in the unit's
transaction, ``manage.py tidewire relay`` only publishes what is in the outbox.
"""

from __future__ import annotations

from tidewire.integrations.django.publishing import publish, publish_all

__all__ = ["publish", "publish_all"]
