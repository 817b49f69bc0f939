"""A JetStream-like broker: streams, durable pull consumers and buckets, and the adapter that makes a transport of them.

The server numbers messages in streams, forgets ids after a window, and gives each consumer what it has not acked: after
its ack wait a message comes again, in any order, and a later one may overtake it. It takes an ack from whoever sends
one. It counts hand-outs, not failures, and knows neither lanes nor delays beyond a single message.

The adapter pays: a lane is a subject with a consumer of its own, owned by whoever's name stands in a bucket under the
highest revision, as long as the owner's own entry lives; acks are fenced by that lease, since the server does not.
Whoever takes a lane over gathers all that is out before it hands anything on. What was tried how often stands beside
the owner's name. What waits for its time waits in a subject of its own, from where the lane's owner fetches it.
"""
