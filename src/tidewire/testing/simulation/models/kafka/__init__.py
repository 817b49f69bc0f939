"""A Kafka-like broker: partitioned logs and committed offsets, and the adapter that makes a transport of them.

The server keeps records in partitions, never one by one acknowledged: a group has an offset per partition and a text
beside it, of a bounded size. It knows nothing of delays, attempts, dead letters or ids. Partitions are shared out
among a group's members by a coordinator; a member that is silent for its session is out, and its commits are refused.

The adapter pays: which offsets above the watermark are done, handed out, or were tried how often stands in the text
of the commit (`marks`), written before each hand-out and with each settle; inbox channels and dead letters are topics
of their own; what waits for its time waits in the adapter; a dead letter is removed by a tombstone.
"""
