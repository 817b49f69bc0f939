"""``module:service``: what is found, and what is said when it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidewire.cli.target import find_service
from tidewire.errors import ConfigurationError
from tidewire.runtime.service import Service

BILLING = "from tidewire.runtime.service import Service\nbilling = Service('billing')\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder with a package ``twshop``, and forget its modules afterwards."""
    package = tmp_path / "twshop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "billing.py").write_text(f"{BILLING}number = 3\n")
    (package / "several.py").write_text(f"{BILLING}refunds = Service('refunds')\n")
    (package / "empty.py").write_text("number = 3\n")
    (package / "wants.py").write_text("import surely_not_installed\n")
    (package / "broken.py").write_text("x = 1\ny = x / 0\n")
    (package / "unfinished.py").write_text("def f(:\n")
    (package / "refused.py").write_text("from tidewire.runtime.service import Service\nService('')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("twshop")]:
        del sys.modules[name]


@pytest.mark.parametrize("target", ["twshop.billing:billing", "twshop.billing", "twshop/billing.py:billing"])
def test_a_service_is_found(target: str) -> None:
    """A service is found by module and name, by module alone where it is the only one, and by its file."""
    found = find_service(target)
    assert isinstance(found, Service)
    assert "billing" == found.name


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        ("twshop.biling:billing", "there is no module 'twshop.biling'", "did you mean 'twshop.billing'?"),
        ("twshopp.billing:billing", "there is no module 'twshopp'", "did you mean 'twshop'?"),
        ("elsewhere:billing", "there is no module 'elsewhere'", "start tidewire in the folder"),
        ("twshop.billing:biling", "module 'twshop.billing' has no 'biling'", "did you mean 'billing'?"),
        ("twshop.billing:zzz", "module 'twshop.billing' has no 'zzz'", "its services: twshop.billing:billing"),
        (
            "twshop.billing:number",
            "twshop.billing:number is not a Service, it is of type int",
            "twshop.billing:billing",
        ),
        ("twshop.several", "module 'twshop.several' has 2 services", "twshop.several:billing, twshop.several:refunds"),
        ("twshop.empty", "module 'twshop.empty' has no service", "make one"),
        ("twshop.wants:x", "module 'twshop.wants' imports 'surely_not_installed'", "wants.py, line 1"),
        ("twshop.broken:x", "ZeroDivisionError", "broken.py, line 2"),
        ("twshop.unfinished:x", "SyntaxError", "unfinished.py, line 1"),
        (":billing", "names no service", "module:service"),
        ("", "names no service", "module:service"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_near(target: str, message: str, hint: str) -> None:
    """Each way to miss a service has its own sentence and a hint with the fix."""
    with pytest.raises(ConfigurationError) as raised:
        find_service(target)
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_an_error_of_tidewire_in_the_module_keeps_its_own_words() -> None:
    """A configuration error that the user's module raises is not wrapped into another."""
    with pytest.raises(ConfigurationError) as raised:
        find_service("twshop.refused:x")
    assert "cannot be imported" not in raised.value.message
