// A till that knows nothing of Tidewire: node producer.js HOST:PORT, one order in JSON on each line of standard input.
"use strict";
const readline = require("node:readline");
const { Kafka, Partitioners, logLevel } = require("kafkajs");

async function main() {
  const kafka = new Kafka({ clientId: "till", brokers: process.argv[2].split(","), logLevel: logLevel.ERROR });
  // murmur2, as Java's client: then a key lies in the same lane as those of Tidewire's own publishers.
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner, idempotent: true });
  await producer.connect();
  const messages = [];
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { id, ...said } = JSON.parse(line);
    messages.push({
      key: said.order?.order_id,
      value: JSON.stringify(said),
      headers: id === undefined ? {} : { "message-id": id },
    });
  }
  await producer.send({ topic: "till.order", acks: -1, messages });
  await producer.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
