"""A person stores a key, a token is made, calls resolve to the key, and what is revoked stops."""

from __future__ import annotations

import pytest
from tests.support.vault import BROWSER, OPENAI_KEY, PASSWORD, World, value

from keybearer.access.tokens import NewToken
from keybearer.domain import KeySource, Role
from keybearer.errors import KeyInactive, KeyMissing, NotFound, TokenInvalid
from keybearer.vault.secrets import NewSecret


async def test_a_key_goes_in_once_and_is_borne_to_the_provider(world: World) -> None:
    link = await world.users.issue_setup_link()
    admin, cookie = await world.users.redeem_setup_link(link, "Ada@Example.com", PASSWORD, "Ada", BROWSER)
    assert admin.role is Role.ADMIN
    caller = await world.sessions.authenticate(cookie, BROWSER)
    openai = (await world.providers.registry(caller.user_id)).get("openai")
    with pytest.raises(KeyMissing, match="no key for OpenAI") as missing:
        await world.resolver.resolve(caller.user_id, None, openai, "gpt-5")
    assert "/secrets/new?provider=openai" in missing.value.hint

    stored = await world.secrets.create(caller, NewSecret("openai", value(OPENAI_KEY), tags=("work",)))
    assert stored.preview == "sk-p…mnop"
    assert stored.egress == ("https://api.openai.com:443",)
    assert (await world.providers.get(caller, "openai")).has_api_key
    made, text = await world.tokens.create(caller, NewToken("laptop"))
    grant = await world.tokens.verify(text.encode())
    assert (grant.token_id, grant.user_id) == (made.id, caller.user_id)

    (credential,) = await world.resolver.resolve(grant.user_id, grant.token_id, openai, "gpt-5")
    assert credential.value.reveal() == OPENAI_KEY.encode()
    assert (credential.source, credential.secret_id) == (KeySource.USER, stored.id)

    await world.secrets.update(caller, stored.id, {"is_active": False})
    with pytest.raises(KeyInactive) as inactive:
        await world.resolver.resolve(grant.user_id, grant.token_id, openai, "gpt-5")
    assert f"/secrets/{stored.id}" in inactive.value.hint
    assert not (await world.providers.get(caller, "openai")).has_api_key
    await world.secrets.delete(caller, stored.id)
    with pytest.raises(NotFound):
        await world.secrets.get(caller, stored.id)
    await world.tokens.update(caller, made.id, is_active=False)
    with pytest.raises(TokenInvalid):
        await world.tokens.verify(text.encode())
