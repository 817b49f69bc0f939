"""A till that knows nothing of Tidewire: ``python pika_producer.py URL``, one order in JSON on each line of its input.

It publishes to the exchange that has the topic's name. The routing key may be anything; the group's first lane takes
it all, in order.
"""

import json
import sys

import pika


def main() -> None:
    """Publish what stands on standard input, each confirmed by the broker."""
    connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
    channel = connection.channel()
    channel.confirm_delivery()
    for line in sys.stdin:
        said = json.loads(line)
        properties = pika.BasicProperties(
            message_id=said.pop("id", None), content_type="application/json", delivery_mode=pika.DeliveryMode.Persistent
        )
        body = json.dumps(said).encode()
        channel.basic_publish("till.order", said["till"], body, properties, mandatory=True)
    connection.close()


if __name__ == "__main__":
    main()
