"""A display that knows nothing of Tidewire: ``python pika_consumer.py URL QUEUE`` prints payments until it is ended.

It binds a queue of its own to the topic's exchange, once for each lane: the routing key is the lane's number.
"""

import json
import signal
import sys
from types import FrameType

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

LANES = 8


def show(channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
    """Print a payment: the attributes of CloudEvents are headers, the data is the body."""
    headers = dict[str, object](properties.headers or {})
    seen = {name: headers[f"cloudEvents_{name}"] for name in ("id", "type", "source", "partitionkey")}
    print(json.dumps({**seen, "data": json.loads(body)}), flush=True)
    channel.basic_ack(method.delivery_tag or 0)


def main() -> None:
    """Print the payments of a queue."""
    url, queue = sys.argv[1:]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    for lane in range(LANES):
        channel.queue_bind(queue, "till.payment", str(lane))
    channel.basic_qos(prefetch_count=100)
    channel.basic_consume(queue, show)
    print("ready", file=sys.stderr, flush=True)
    channel.start_consuming()


def leave(signal_number: int, frame: FrameType | None) -> None:
    """End: what is not acked comes again."""
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    main()
