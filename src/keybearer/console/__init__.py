"""The web console: server-rendered pages, a strict Content-Security-Policy, no inline script.

``secrets``   the Secrets Vault's pages; each asks the same services as the REST API
``views``     coming in, access tokens, the access log: likewise
``forms``     what forms hold (pure)
``registry``  those of providers and models
``teams``     those of teams, their members and what is shared with them
``budgets``   that of budgets and limits
``transfer``  those of import and export
``pages``     templates, asset addresses, who is signed in
``headers``   the security headers of everything but the gateway
"""

from __future__ import annotations

from fastapi import FastAPI

from keybearer.console import budgets, headers, pages, registry, secrets, teams, transfer, views


def install(app: FastAPI) -> None:
    """Mount the pages and their assets."""
    app.mount("/assets", pages.assets_app(), name="assets")
    app.include_router(views.router)
    app.include_router(secrets.router)
    app.include_router(registry.router)
    app.include_router(teams.router)
    app.include_router(budgets.router)
    app.include_router(transfer.router)
    pages.install_errors(app)
    app.add_middleware(headers.SecurityHeaders)  # last, which is outermost: whatever is answered has them
