"""What the style forbids and a place needs all the same: one line each, with its reason."""

from __future__ import annotations

# (rule, where) → why. *where* is a path, or path::function; a path that ends in / covers a folder.
EXCEPTIONS: dict[tuple[str, str], str] = {
    # Time and chance come in through parameters; these are their sources.
    ("time", "src/tidewire/clock.py"): "the one file that reads a clock",
    ("time", "src/tidewire/chance.py"): "a UUIDv7 holds the wall time",
    ("chance", "src/tidewire/chance.py"): "the one source of chance",
    ("environment", "src/tidewire/config.py"): "the one file that reads the environment",
    # The screens.
    ("print", "src/tidewire/cli/"): "a command line prints",
    ("dynamic import", "src/tidewire/__init__.py"): "public names are loaded when they are first used",
    ("dynamic import", "src/tidewire/cli/main.py"): "a command is loaded when it is chosen",
    ("dynamic import", "src/tidewire/cli/target.py"): "the service to run is named on the command line",
    (
        "broad except",
        "src/tidewire/cli/target.py::_import",
    ): "importing a user's module may raise anything; it is told with its place",
    ("broad except", "src/tidewire/cli/dev/worker.py"): "tells where a handler raised, and lets it rise",
    # Seams that say a composite key in its natural order.
    ("positional", "src/tidewire/protocols/"): "group, source, event id is one key, said in its one order",
    ("positional", "src/tidewire/stores/"): "as the seams: group, source, event id is one key",
    ("positional", "src/tidewire/transports/memory/"): "as the seams: topic and group name one thing",
    ("positional", "src/tidewire/transports/sqlite/"): "rows are named by (sub, lane) and written on a connection",
    ("positional", "src/tidewire/operations/"): "where one acts, whose it is, which ones: said in that order",
    ("positional", "src/tidewire/kit/sqlite_errors.py"): "error, place, classes: the table's row",
    ("positional", "src/tidewire/rules/outgoing.py"): "source, id, handler, ordinal are the cause's one name",
    ("positional", "src/tidewire/rules/upcasts.py"): "type, its codec, its steps: called from one place",
    ("positional", "src/tidewire/runtime/outgoing.py"): "context, event, delay, at: called for every event published",
    ("positional", "src/tidewire/runtime/plan.py"): "private steps of one compilation",
    ("positional", "src/tidewire/runtime/holds.py"): "what, where, until when",
    ("positional", "src/tidewire/runtime/consumer.py"): "implements the workers' `Decider`",
    ("positional", "src/tidewire/runtime/workers.py"): "work, what came of it, how long it took",
    ("positional", "src/tidewire/codecs/json.py"): "made by one function below it",
    ("positional", "src/tidewire/cli/demo/"): "the demo's own steps, each called from one place",
    ("positional", "src/tidewire/testing/transports/clients.py"): "a command and its operands",
    # A decorator's options are the user's words; a lane is a row.
    ("parameters", "src/tidewire/runtime/service.py::Service.on"): "one keyword per promise a handler can ask for",
    ("parameters", "src/tidewire/transports/sqlite/lanes.py"): "the columns of a lane",
    # Typing holes.
    ("typing", "src/tidewire/protocols/"): "events and native handles are the user's own types",
    ("typing", "src/tidewire/__init__.py"): "a module's __getattr__ returns whatever the name is",
    ("typing", "src/tidewire/runtime/"): "events, returned events and native handles are the user's own types",
    ("typing", "src/tidewire/rules/events.py"): "an event is the user's own class",
    ("typing", "src/tidewire/kit/groups.py"): "isinstance forgets what a group is a group of",
    ("typing", "src/tidewire/rules/upcasts.py"): "fields of an older version are plain JSON",
    ("typing", "src/tidewire/rules/cloudevents.py"): "a JSON document",
    ("typing", "src/tidewire/codecs/"): "values of the user's own types",
    ("typing", "src/tidewire/stores/"): "SQL parameters, rows and native handles",
    ("typing", "src/tidewire/transports/sqlite/"): "SQL parameters and rows",
    ("typing", "src/tidewire/config.py"): "difflib's stub wants a list of texts; an entry point is whatever it names",
    (
        "broad except",
        "src/tidewire/config.py::_provided",
    ): "importing another's package may raise anything; it is named",
    ("typing", "src/tidewire/cli/"): "JSON documents, and rows of tables, of any kind",
    ("typing", "src/tidewire/middleware/"): "events and what handlers return are the user's own types",
    ("typing", "src/tidewire/cli/demo/"): "rows of the services' databases; wrappers pass on what they do not know",
    ("typing", "src/tidewire/testing/lives.py"): "what a life does not cut off is passed on as it is",
    ("typing", "src/tidewire/testing/seen.py"): "an event is of the user's own class",
    ("typing", "src/tidewire/testing/virtual.py"): "callbacks and what they return, as the loop's own signatures",
    ("typing", "src/tidewire/testing/world.py"): "events and stores' handles are the user's own types",
    ("task", "src/tidewire/testing/lives.py"): "a life outlives the call that starts it; `stop` and `ended` await it",
    # Errors are caught whole where one place decides what they mean, or where a half-done act is undone and they rise.
    ("broad except", "src/tidewire/codecs/json.py"): "a decoder raises DecodeError and nothing else (R13)",
    ("broad except", "src/tidewire/rules/upcasts.py"): "an upcast is the user's code; its failure is a DecodeError",
    ("broad except", "src/tidewire/runtime/pipeline.py"): "makes outcomes of errors",
    ("broad except", "src/tidewire/runtime/recurring.py"): "the user's function: rolled back, told, tried again",
    ("broad except", "src/tidewire/runtime/work.py"): "one commit's error is answered to each of its works",
    ("broad except", "src/tidewire/runtime/isolated.py"): "passes into the coroutine what is thrown into the task",
    ("broad except", "src/tidewire/runtime/subscriber.py"): "a membership that fails is counted, told and begun anew",
    ("broad except", "src/tidewire/runtime/serve.py"): "what the block raises rises after the drain",
    ("broad except", "src/tidewire/runtime/producer.py"): "rolls back and rises",
    ("broad except", "src/tidewire/stores/sqlite/"): "gives the turn back or rolls back, and rises",
    ("broad except", "src/tidewire/kit/sqlite_file.py"): "closes or rolls back, and rises",
    ("broad except", "src/tidewire/transports/sqlite/"): "rolls back; every job's future hears of its error",
}
