"""The model of an AMQP-like broker: exchanges and queues, confirms, tags, and no way to look without taking."""
