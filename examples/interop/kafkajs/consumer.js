// A display that knows nothing of Tidewire: node consumer.js HOST:PORT GROUP prints each payment, until it is ended.
"use strict";
const { Kafka, logLevel } = require("kafkajs");

async function main() {
  const kafka = new Kafka({ clientId: "display", brokers: process.argv[2].split(","), logLevel: logLevel.ERROR });
  const consumer = kafka.consumer({ groupId: process.argv[3] });
  process.once("SIGTERM", () => consumer.disconnect());
  await consumer.connect();
  await consumer.subscribe({ topics: ["till.payment"], fromBeginning: true });
  await consumer.run({
    eachMessage: async ({ partition, message }) => {
      // The attributes of CloudEvents are headers, the data is the value, the key is the record's.
      const { ce_id, ce_type, ce_source } = message.headers;
      const seen = { id: ce_id, type: ce_type, source: ce_source, key: message.key };
      const texts = Object.fromEntries(Object.entries(seen).map(([name, value]) => [name, value.toString()]));
      console.log(JSON.stringify({ ...texts, partition, data: JSON.parse(message.value) }));
    },
  });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
