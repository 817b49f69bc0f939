"""``module:service``: find the service a person names, and say what is near when there is none."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tidewire.cli.exits import did_you_mean
from tidewire.errors import ConfigurationError, TidewireError
from tidewire.rules.events import EventType, definition_of, is_event
from tidewire.runtime.service import Service

__all__ = ["find_event", "find_function", "find_service", "import_roots", "services_in"]


def find_service(target: str) -> Service:
    """Import *target*, ``module:service``, with `import_roots` first on the path, and return the service.

    The name after the colon may be left out where the module has exactly one service.

    Raises:
        ConfigurationError: no such module, no such name, not a service, or several to choose from; the message
            says which and what is near. An error that the module raises while it is imported is named with its
            place, except for tidewire's own, which rise as they are.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or module_name.startswith("."):
        raise ConfigurationError(
            f"{target!r} names no service", hint="name one as module:service, for example shop.billing:billing"
        )
    module = _import(module_name.removesuffix(".py").replace("/", "."))
    services = {name: value for name, value in vars(module).items() if isinstance(value, Service)}
    if not attribute:
        return _only(module.__name__, services)
    if attribute in services:
        return services[attribute]
    if not hasattr(module, attribute):
        raise ConfigurationError(
            f"module {module.__name__!r} has no {attribute!r}",
            hint=did_you_mean(attribute, services) or _listing(module.__name__, services),
        )
    found = type(getattr(module, attribute)).__name__
    raise ConfigurationError(
        f"{module.__name__}:{attribute} is not a Service, it is of type {found}",
        hint=_listing(module.__name__, services),
    )


def find_event(target: str) -> EventType:
    """Import *target*, ``module:Class``, as `find_service` does, and return what is known of that event class.

    Raises:
        ConfigurationError: no such module or class, or a class that is no integration event.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ConfigurationError(
            f"{target!r} names no event class", hint="name one as module:Class, for example shop.events:OrderPlaced"
        )
    module = _import(module_name.removesuffix(".py").replace("/", "."))
    events = {name: value for name, value in vars(module).items() if is_event(value)}
    if attribute not in events:
        listing = "its events: " + ", ".join(sorted(events)) if events else f"there is no event in {module_name!r}"
        raise ConfigurationError(
            f"module {module_name!r} has no event {attribute!r}", hint=did_you_mean(attribute, events) or listing
        )
    definition = definition_of(events[attribute])
    if definition.kind == "domain":
        raise ConfigurationError(f"{target} is a domain event: it stays inside its service")
    return definition


def find_function(target: str) -> Callable[..., Any]:
    """Import *target*, ``module:function``, as `find_service` does, and return what can be called by that name.

    Raises:
        ConfigurationError: no such module or function; says what is near.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ConfigurationError(f"{target!r} names no function", hint="name one as module:function")
    module = _import(module_name.removesuffix(".py").replace("/", "."))
    function: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(function):
        hint = did_you_mean(attribute, vars(module)) or f"look at the functions of {module_name!r}"
        raise ConfigurationError(f"module {module_name!r} has no function {attribute!r}", hint=hint)
    return function


def services_in(module: str) -> dict[str, Service]:
    """Import *module* as `find_service` does and return the services in it, by their names there.

    Raises:
        ConfigurationError: it cannot be imported.
    """
    return {name: value for name, value in vars(_import(module)).items() if isinstance(value, Service)}


def import_roots() -> list[Path]:
    """Return where modules are looked for first: the working directory, and its ``src`` where it has one."""
    here = Path.cwd()
    return [here, *(folder for folder in [here / "src"] if folder.is_dir())]


def _import(name: str) -> ModuleType:
    for root in reversed(import_roots()):
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing == name or name.startswith(f"{missing}."):
            raise ConfigurationError(f"there is no module {missing!r}", hint=_near_module(missing)) from None
        raise ConfigurationError(
            f"module {name!r} imports {missing!r}, which is not there", hint=_place(error)
        ) from error
    except TidewireError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"module {name!r} cannot be imported: {type(error).__name__}: {error}", hint=_place(error)
        ) from error


def _only(module: str, services: dict[str, Service]) -> Service:
    distinct = {id(service): service for service in services.values()}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    problem = "has no service" if not distinct else f"has {len(distinct)} services"
    raise ConfigurationError(f"module {module!r} {problem}", hint=_listing(module, services))


def _listing(module: str, services: dict[str, Service]) -> str:
    if not services:
        return f"there is no Service in {module!r}: make one with `name = Service(...)`"
    return "its services: " + ", ".join(f"{module}:{name}" for name in sorted(services))


def _near_module(name: str) -> str:
    """Return a question that names a module near the missing one, or says where modules are looked for."""
    parent, _, leaf = name.rpartition(".")
    folders = list(sys.modules[parent].__path__) if parent in sys.modules else [str(root) for root in import_roots()]
    near = did_you_mean(leaf, [module.name for module in pkgutil.iter_modules(folders)])
    if near:
        return near.replace("'", f"'{parent}.", 1) if parent else near
    return f"modules are looked for from {Path.cwd()}: start tidewire in the folder that holds your package"


def _place(error: Exception) -> str:
    """Return the line of the user's code that raised, the innermost frame that is not the import machinery's."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    if isinstance(error, SyntaxError):
        return f"the error is in {error.filename}, line {error.lineno}"
    return f"it was raised in {ours[-1].filename}, line {ours[-1].lineno}" if ours else ""
