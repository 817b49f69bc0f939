"""The application as Django knows it."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["TidewireConfig"]


class TidewireConfig(AppConfig):
    """Brings the management command; it has no models."""

    name = "tidewire.integrations.django"
    label = "tidewire"
    verbose_name = "Tidewire"
