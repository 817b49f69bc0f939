"""Settings of the shop: one database, which has the store of tidewire, too."""

import os
from urllib.parse import urlsplit

SECRET_KEY = "only-an-example"  # noqa: S105
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "djshop.urls"
INSTALLED_APPS = ["djshop", "tidewire.integrations.django.apps.TidewireConfig"]  # or "tidewire.integrations.django"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

_url = urlsplit(os.environ.get("SHOP_DATABASE", "sqlite:///shop.db"))
_database = (
    {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.path[1:],
        "HOST": _url.hostname,
        "PORT": _url.port,
        "USER": _url.username,
        "PASSWORD": _url.password,
    }
    if _url.scheme == "postgresql"
    else {"ENGINE": "django.db.backends.sqlite3", "NAME": _url.path[1:]}
)
DATABASES = {"default": _database}

TIDEWIRE = {"SOURCE": "djshop", "BROKER": os.environ.get("SHOP_BROKER", "sqlite:///broker.db")}
