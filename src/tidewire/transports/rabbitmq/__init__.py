"""Transport ``amqp://`` and ``amqps://``: RabbitMQ 3.10 to 4.x."""

from __future__ import annotations

from tidewire.transports.rabbitmq.transport import RabbitTransport, open_rabbit_transport

__all__ = ["RabbitTransport", "open_rabbit_transport"]
