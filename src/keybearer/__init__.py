"""Keybearer: a bring-your-own-key vault and LLM gateway.

Glossary (the words used everywhere in the code):

root key      wraps owner keys; itself wrapped by a KMS, a file, the environment or a passphrase
owner key     seals one owner's values; an owner is a user, a team or the system
envelope      the sealed form of a value (``crypto.envelope``)
egress set    the ``scheme://host:port`` list a secret may be sent to, bound into its envelope
caller        who asks: a person with a session, or an access token
credential    a secret resolved and opened, ready to be sent to its upstream
dialect       the shape of an API: ``openai``, ``anthropic``, ``gemini``
upstream      the provider's server
receipt       the ``x-keybearer-*`` headers that say whose key served a response
journal       the per-process, hash-chained file a use is written to before the key leaves
"""

__version__ = "0.1.0"
