"""The catalogue: what Keybearer knows about providers, as data (``providers.yaml``) and pure functions.

Provider   a service that takes a key: its hosts, its APIs, its key formats, its models
API        one way to speak to a provider: a dialect, the path it lies under, how the key is sent
Dialect    the wire format of an API: ``openai``, ``anthropic`` or ``gemini``
Registry   the providers and models that one user can name: predefined ones and the user's own
Preview    what a listing may show of a value

``provider``   the nouns, and custom providers      ``load``     reading ``providers.yaml``
``registry``   finding the provider of a model       ``keys``     format checks, detection, previews
``places``     a provider's address for one key      ``sharing``  what a key of several people may be used for
``openrouter`` which chats it can serve in place of other providers
"""

from keybearer.catalog.keys import KeyCheck, check_key, detect, preview
from keybearer.catalog.load import Catalog
from keybearer.catalog.provider import (
    ANTHROPIC,
    DIALECTS,
    GEMINI,
    HTTP,
    OPENAI,
    Api,
    Auth,
    KeyPattern,
    Model,
    Parameter,
    Provider,
    Registered,
    TestCall,
    custom,
    with_auth,
    with_base_url,
    with_models,
    with_registered,
    with_sharing,
)
from keybearer.catalog.registry import MODEL_NAME_LIMIT, Entry, Registry
from keybearer.catalog.sharing import Sharing, Verdict

__all__ = [
    "ANTHROPIC",
    "DIALECTS",
    "GEMINI",
    "HTTP",
    "MODEL_NAME_LIMIT",
    "OPENAI",
    "Api",
    "Auth",
    "Catalog",
    "Entry",
    "KeyCheck",
    "KeyPattern",
    "Model",
    "Parameter",
    "Provider",
    "Registered",
    "Registry",
    "Sharing",
    "TestCall",
    "Verdict",
    "check_key",
    "custom",
    "detect",
    "preview",
    "with_auth",
    "with_base_url",
    "with_models",
    "with_registered",
    "with_sharing",
]
