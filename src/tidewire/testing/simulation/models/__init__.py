"""Adversarial models of brokers: small servers with the semantics of a real kind, and adapters that pay for promises.

A model is two things that know each other only over a `Link`:

- its **server** (a subclass of `Server`): what the broker stores and decides. It lives outside of every process, so
  it outlives each; its methods are plain functions that happen at once, and judge time by ``self.clock``. It has its
  broker's own semantics and no more: no help that the broker does not give.
- its **adapter**: a real `Transport` over one `Link`. Whatever it wants of the server it asks with
  ``await link.call(server.method, …)``: the request takes its time, may arrive after its sender has died, may not
  arrive, and its answer may be lost; then it raises `Disconnected`, whose *sent* says whether it may have been done.
  What the broker does not promise, the adapter pays for, as our real adapters have to.

What clients need alike is in `intake`: `Bell` (news from the server), `Intake` (the outstanding receive, safe to
cancel) and `Crew` (tasks that live as long as a client). What all adapters check alike is in `common`; how those to
brokers of logs name and provision things, in `channels`.

To add a model:

1. write the server and ``Server.client(link)``, which makes its adapter for one client;
2. put it into `catalogue.MODELS` under its name: from then on ``--ground NAME`` and the seeds know it;
3. give ``repeat`` if the broker may hand out what it has stored once more;
4. add it to ``tests/simulation/test_models.py``: the whole transport conformance suite must pass on
   ``model_site(NAME)``, which runs the same server and adapter on an ordinary event loop, in real time;
5. plant bugs of its kind in ``tests/simulation/planted_models.py`` and see them found;
6. say in ``docs/simulation.md`` what it does to a service.
"""
