"""Run by the Python of django-ca's environment: issues with it, and prints how many a second, and their CPU time."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from urllib.parse import unquote, urlsplit


def main() -> None:
    """Read database and requests from standard input, make a CA, and issue."""
    told = json.load(sys.stdin)
    url = urlsplit(told["database"])
    with tempfile.TemporaryDirectory() as folder:
        import django
        from django.conf import settings

        settings.configure(
            SECRET_KEY="bench",
            USE_TZ=True,
            INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_ca"],
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
            ROOT_URLCONF="__main__",
            DATABASES={
                "default": {
                    "ENGINE": "django.db.backends.postgresql",
                    "NAME": url.path.strip("/"),
                    "USER": unquote(url.username or ""),
                    "PASSWORD": unquote(url.password or ""),
                    "HOST": url.hostname,
                    "PORT": url.port or 5432,
                }
            },
            STORAGES={
                "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
                "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
                "django-ca": {
                    "BACKEND": "django.core.files.storage.FileSystemStorage",
                    "OPTIONS": {"location": folder},
                },
            },
            CA_USE_CELERY=False,
            CA_DEFAULT_HOSTNAME="ca.bench.example",
        )
        django.setup()
        from django.urls import include, path

        # Certificates name where lists and issuers are to be had.
        globals()["urlpatterns"] = [path("ca/", include("django_ca.urls"))]
        print(json.dumps(_issue(told["requests"])))


def _issue(requests: list[str]) -> dict[str, float]:
    from cryptography import x509
    from django.core.management import call_command
    from django_ca.key_backends.storages.models import StoragesUsePrivateKeyOptions
    from django_ca.models import Certificate, CertificateAuthority

    call_command("migrate", verbosity=0)
    call_command("init_ca", "bench", "CN=bench CA", key_type="EC")
    authority = CertificateAuthority.objects.get(name="bench")
    options = StoragesUsePrivateKeyOptions(password=None)
    loaded = [x509.load_pem_x509_csr(text.encode()) for text in requests]
    for csr in loaded[:5]:
        Certificate.objects.create_cert(authority, options, csr, subject=csr.subject)
    start, used = time.perf_counter(), time.process_time()
    for csr in loaded[5:]:
        Certificate.objects.create_cert(authority, options, csr, subject=csr.subject)
    spent, used = time.perf_counter() - start, time.process_time() - used
    return {"rate": (len(loaded) - 5) / spent, "cpu": used / (len(loaded) - 5) * 1e6}


if __name__ == "__main__":
    main()
