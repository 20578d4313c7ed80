"""The web console: server-rendered pages, a strict Content-Security-Policy, no inline script.

``secrets``   the Secrets Vault's pages; each asks the same services as the REST API
``views``     coming in, access tokens: likewise
``access_log``  that of the access log
``forms``     what forms hold (pure)
``registry``  those of providers and models
``teams``     those of teams, their members and what is shared with them
``budgets``   that of budgets and limits
``reminders`` that of reminders, and where else one is told
``transfer``  those of import and export
``usage``     that of usage and cost
``admin``     those of administrators: people, encryption keys
``playground``  that to chat with a model
``names``     what pages call things that records know by their id
``pages``     templates, asset addresses, who is signed in
``headers``   the security headers of everything but the gateway
"""

from __future__ import annotations

from fastapi import FastAPI

from keybearer.console import (
    access_log,
    admin,
    budgets,
    headers,
    pages,
    playground,
    registry,
    reminders,
    secrets,
    teams,
    transfer,
    usage,
    views,
)


def install(app: FastAPI) -> None:
    """Mount the pages and their assets."""
    app.mount("/assets", pages.assets_app(), name="assets")
    app.include_router(views.router)
    app.include_router(secrets.router)
    app.include_router(registry.router)
    app.include_router(teams.router)
    app.include_router(budgets.router)
    app.include_router(access_log.router)
    app.include_router(reminders.router)
    app.include_router(transfer.router)
    app.include_router(usage.router)
    app.include_router(admin.router)
    app.include_router(playground.router)
    pages.install_errors(app)
    app.add_middleware(headers.SecurityHeaders)  # last, which is outermost: whatever is answered has them
