"""Django projects of one app, on SQLite, each in a process and a folder of its own."""

import textwrap
from pathlib import Path

from ids_testing import ROOT, run_program

PRELUDE = """
import os, sys
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=[*APPS, "shop"], DEFAULT_AUTO_FIELD=AUTO, USE_TZ=True, SECRET_KEY="x" * 50,
    ROOT_URLCONF="__main__", MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {
        "context_processors": ["django.contrib.auth.context_processors.auth",
                               "django.template.context_processors.request",
                               "django.contrib.messages.context_processors.messages"]}}],
)
django.setup()
urlpatterns = []
from django.core.management import call_command
from django.db import IntegrityError, connection, models
from django.test.utils import CaptureQueriesContext
from senet_fast.ids.django import SnowflakeAutoField, SnowflakeField, default_generator
"""
BIG = "django.db.models.BigAutoField"
AUTO = "senet_fast.ids.django.SnowflakeAutoField"
CONTRIB = [f"django.contrib.{name}" for name in ("contenttypes", "auth", "sessions", "messages", "admin")]


def run_project(
    folder: Path, models: str, program: str, migrations: dict[str, str], auto: str = BIG, apps: list[str] | None = None
) -> None:
    """Runs the program in a project whose app `shop` has these models and migrations."""
    imports = "from django.db import migrations, models\nfrom senet_fast.ids.django import SnowflakeField\n"
    (folder / "shop/migrations").mkdir(parents=True)
    (folder / "shop/__init__.py").touch()
    (folder / "shop/models.py").write_text(imports + textwrap.dedent(models))
    (folder / "shop/migrations/__init__.py").touch()
    for name, source in migrations.items():
        (folder / f"shop/migrations/{name}.py").write_text(imports + textwrap.dedent(source))
    environment = {"SENET_FAST_LEASES": str(folder / "leases"), "PYTHONPATH": f"{ROOT}:{folder}"}
    begin = f"APPS, AUTO = {apps or []}, {auto!r}\n{PRELUDE}"
    run_program(begin + textwrap.dedent(program), cwd=folder, env=environment)
